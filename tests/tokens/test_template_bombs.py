"""Chat templates that would take all memory or all time: each is refused at once, in little memory."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from headrace.errors import TokenizerError
from headrace.loaders.tokens import template_sandbox
from headrace.loaders.tokens.chat_template import ChatTemplate

DOUBLED = "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = CODE %}{% endfor %}{{ ns.x }}"
BOMBS = (
    "{{ 'a' * 10000000000 }}",
    "{{ 10000000000 * 'a' }}",
    "{{ ([0] * 1000000000) | length }}",
    "{{ ((0, 1) * 1000000000) | length }}",
    "{{ 10 ** (10 ** 10) }}",
    DOUBLED.replace("CODE", "ns.x ~ ns.x"),
    DOUBLED.replace("CODE", "ns.x + ns.x"),
    DOUBLED.replace("CODE", "[ns.x, ns.x] | join"),
    DOUBLED.replace("CODE", "''.join([ns.x, ns.x])"),
    DOUBLED.replace("CODE", "ns.x | replace('a', 'aa')"),
    DOUBLED.replace("CODE", "ns.x.replace('', 'aa')"),
    DOUBLED.replace("CODE", "'%s%s' % (ns.x, ns.x)"),
    DOUBLED.replace("CODE", "'%s%s' | format(ns.x, ns.x)"),
    DOUBLED.replace("CODE", "'{0}{0}'.format(ns.x)"),
    DOUBLED.replace("CODE", "('\n' * 99 ~ ns.x) | indent(ns.x)"),
    "{% set ns = namespace(x=7) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
    "{% set x %}{% for i in range(9000) %}{{ 'a' * 9000 }}{% endfor %}{% endset %}{{ x }}",
    "{% macro f() %}{% for i in range(9000) %}{{ 'a' * 9000 }}{% endfor %}{% endmacro %}{{ f() }}",
    "{% for i in range(9000) %}{{ 'a' * 9000 }}{% endfor %}",
    "{% set x = 'a' * 9000000 %}{% for i in range(100000) %}{{ x }}{% endfor %}",
    "{{ 'a' | center(4000000000) }}",
    "{{ 'a'.ljust(4000000000) }}",
    "{{ 'a'.zfill(4000000000) }}",
    "{{ ('\t' * 9000).expandtabs(900000) }}",
    "{{ '%4000000000d' % 1 }}",
    "{{ '%*d' % (4000000000, 1) }}",
    "{{ '%4000000000d' | format(1) }}",
    "{{ '{:4000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 4000000000) }}",
    "{{ 'a\nb' | indent(4000000000) }}",
    "{{ [1] | batch(4000000000, 0) | list }}",
    "{{ [1] | slice(4000000000) | list }}",
    "{{ {'a': 1} | tojson(indent=4000000000) }}",
    "{{ ['a' * 9000000, 'b' * 9000000] | map('replace', 'a', 'aaaaaaaaaa') | join }}",
    "{{ range(99999999) | list }}",
    "{{ [[0] * 4000000] * 4000000 | length }}",
    "{{ ([[0] * 100000] * 10000) | sum(start=[]) }}",
    "{{ lipsum(n=100000) }}",
)


def render(text: str) -> str:
    template = ChatTemplate(text=text, tokens={}, source="a stranger")
    return template.render([{"role": "user", "content": "hi"}], True)


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_in_little_memory(bomb: str) -> None:
    began = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(TokenizerError, match="a stranger"):
            render(bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 30
    assert time.process_time() - began < 30


def test_many_large_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is small enough, all of them are not."""
    monkeypatch.setattr(template_sandbox, "MOST_MADE", 1 << 24)
    kept = (
        "{% set ns = namespace(x=[]) %}{% for i in range(99) %}{% set ns.x = ns.x + ['a' * 1000000 ~ i] %}{% endfor %}"
    )
    with pytest.raises(TokenizerError, match="more than 16,777,216 characters"):
        render(kept)


def test_a_template_without_an_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "SECONDS", 0.2)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(TokenizerError, match="takes longer than"):
        render(loops)


def test_nothing_is_stopped_behind_its_end() -> None:
    """The timer may fire while the body ends."""
    for _ in range(300):
        try:
            with template_sandbox.bounded(1e-4):
                sum(range(3000))
        except TimeoutError:
            pass
        assert sum(range(10)) == 45
    time.sleep(0.01)


def test_what_templates_do_is_not_refused() -> None:
    text = (
        "{{ messages | map(attribute='content') | join(', ') }}{{ 'a' ~ 1 ~ none }}{{ 'a'.center(5) }}{{ 7 * 3 }}"
        "{{ '%s-%d' | format('x', 3) }}{{ '{:>4}'.format(1) }}{{ 'a b'.replace(' ', '_') }}{{ [1] + [2] }}"
        "{{ [1, 2] | sum }}{{ 'x\ny' | indent(2) }}{{ 2 ** 10 }}{{ '=' * 20 }}{{ {'a': [1]} | tojson(indent=1) }}"
        "{{ [1, 2, 3] | batch(2) | list }}{{ 1.25 | round(1) }}{{ 17 % 5 }}{{ '%s' % 'a' }}"
    )
    assert render(text) == (
        'hia1None  a  21x-3   1a_b[1, 2]3x\n  y1024===================={\n "a": [\n  1\n ]\n}[[1, 2], [3]]1.22a'
    )


def test_long_conversations_are_rendered() -> None:
    """Ten million characters: more than any context holds."""
    template = ChatTemplate(
        text="{% set n = namespace(x='') %}{% for m in messages %}{% set n.x = n.x ~ m.content %}{% endfor %}{{ n.x }}",
        tokens={}, source="a stranger",
    )  # fmt: skip
    assert len(template.render([{"role": "user", "content": "a" * 100_000}] * 100, True)) == 10_000_000
