"""Chat templates that would take all memory or all time: each is refused at once, in little memory."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from headrace.errors import TokenizerError
from headrace.loaders.tokens import template_limits, template_sandbox
from headrace.loaders.tokens.chat_template import ChatTemplate

DOUBLED = "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = CODE %}{% endfor %}{{ ns.x }}"
NESTED = (
    "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set ns.x = CODE %}{% set ns.y = CODE %}"
    "{% endfor %}{{ END }}"
)
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
    "{{ ('x' * 1000000).join('a' * 1000000) }}",
    "{{ ('x' * 1000000).join(range(90000) | map('string')) }}",
    "{{ range(90000) | map('string') | join('x' * 1000000) }}",
    "{{ ['a' * 1000000] | map('join', 'x' * 1000000) | list }}",
    "{{ ('a' * 1000000).translate({97: 'b' * 1000000}) }}",
    "{{ ('a ' * 1000000) | wordwrap(1, true, 'x' * 1000000) }}",
    "{{ (range(90000) | list) | tojson(indent=1000000) }}",
    "{{ (range(90000) | list) | tojson(separators=('x' * 1000000, ':')) }}",
    "{{ ('%(a)s' * 1000000) % {'a': 'x' * 1000000} }}",
    "{{ ('%(a)s' * 1000000) | format(a='x' * 1000000) }}",
    "{{ ('%(a)999999d' * 10000) % {'a': 1} }}",
    "{{ ('%*d' * 9000) % ((999999, 1) * 9000) }}",
    "{{ ('{0}' * 1000000).format('x' * 1000000) }}",
    "{{ '{a:>{b}}'.format_map({'a': 1, 'b': 4000000000}) }}",
    "{{ '{0[0]:{0[1]}}'.format([1, 4000000000]) }}",
    "{{ ('\u4e00' * 60000000) | list }}",
    "{{ ('ab' * 2000000) | sort }}",
    "{{ ('a b' * 20000000).split('a') }}",
    "{{ ('a b' * 20000000).split() }}",
    "{{ ('\n' * 60000000).splitlines() }}",
    "{{ ('\"' * 60000000) | forceescape }}",
    "{{ ('\u4e00' * 60000000) | urlencode }}",
    "{{ 'a'.encode() * 10000000000 }}",
    "{{ 'a'.encode().ljust(10000000000) }}",
    "{{ (5).to_bytes(10000000000, 'big') }}",
    "{{ ('f' * 6000000) | int(0, 16) // ('f' * 3000000) | int(0, 16) }}",
    "{{ 0x" + "f" * 60_000 + " is divisibleby 0x" + "f" * 30_000 + " }}",
    "{{ strftime_now('%Y' * 1000000) }}",
    # Few bytes, and no end as text; nothing stops their comparison.
    NESTED.replace("CODE", "[ns.x, ns.x]").replace("END", "ns.x"),
    NESTED.replace("CODE", "[ns.x, ns.x]").replace("END", "ns.x | tojson"),
    NESTED.replace("CODE", "(ns.x, ns.x)").replace("END", "{ns.x: 1}"),
    NESTED.replace("CODE", "{'a': ns.x, 'b': ns.x}").replace("END", "ns.x == ns.y"),
    NESTED.replace("CODE", "[ns.x] * 2").replace("END", "ns.x == ns.y"),
    NESTED.replace("CODE", "[ns.x] + [ns.x]").replace("END", "ns.x == ns.y"),
    NESTED.replace("CODE", "dict(a=ns.x, b=ns.x)").replace("END", "ns.x == ns.y"),
    NESTED.replace("CODE", "['', ''] | map('default', ns.x, true) | list").replace("END", "ns.x == ns.y"),
    NESTED.replace("CODE", "[ns.x] | batch(2, ns.x) | list").replace("END", "ns.x == ns.y"),
    NESTED.replace("CODE", "[{'a': ns.x}.values(), {'a': ns.x}.values()]").replace("END", "ns.x"),
    "{% macro two() %}{% set ns.x = varargs %}{% set ns.y = varargs %}{% endmacro %}"
    + NESTED.replace("CODE", "two(ns.x, ns.x) or ns.x").replace("END", "ns.x == ns.y"),
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
    monkeypatch.setattr(template_limits, "MOST_MADE", 1 << 24)
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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_who_loses_what_stops_it_is_stopped_again() -> None:
    """Python drops what is raised inside of a `__del__`."""
    lost = []

    class Loses:
        def __del__(self) -> None:
            try:
                spin()
            except TimeoutError:
                lost.append(self.__class__)
                raise

    def spin() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            pass

    def run() -> None:
        with template_sandbox.bounded(0.01):
            Loses()
            spin()

    with pytest.raises(TimeoutError):
        run()
    assert len(lost) == 1


def test_what_templates_do_is_not_refused() -> None:
    text = (
        "{{ messages | map(attribute='content') | join(', ') }}{{ 'a' ~ 1 ~ none }}{{ 'a'.center(5) }}{{ 7 * 3 }}"
        "{{ '%s-%d' | format('x', 3) }}{{ '{:>4}'.format(1) }}{{ 'a b'.replace(' ', '_') }}{{ [1] + [2] }}"
        "{{ [1, 2] | sum }}{{ 'x\ny' | indent(2) }}{{ 2 ** 10 }}{{ '=' * 20 }}{{ {'a': [1]} | tojson(indent=1) }}"
        "{{ [1, 2, 3] | batch(2) | list }}{{ 1.25 | round(1) }}{{ 17 % 5 }}{{ '%s' % 'a' }}"
        "{{ 'xx' | replace('x', 'y', count=1) }}{{ '%(pattern)s' | format(pattern='z') }}"
    )
    assert render(text) == (
        'hia1None  a  21x-3   1a_b[1, 2]3x\n  y1024===================={\n "a": [\n  1\n ]\n}[[1, 2], [3]]1.22ayxz'
    )


def test_what_templates_do_with_lists_is_not_refused() -> None:
    text = (
        "{% set a, b = 1, (2, 3) %}{{ a }}{{ b }}{{ {'x': [1, {'y': ()}]} }}{{ [{'n': 1}, {'n': 2}] | join('-', 'n') }}"
        "{{ '{a}{b:>3}'.format_map({'a': 1, 'b': 2}) }}{{ '{0}{0.real}'.format(7) }}{{ 'a,b'.split(',') }}"
        "{{ 'b a'.split() | sort | join(' ') }}{{ '12' | int + '0x1f' | int(base=16) }}{{ 17 // 5 }}"
        "{{ 7 is divisibleby 7 }}"
        "{% for k, v in {'k': 'v'} | dictsort %}{{ k }}{{ v }}{% endfor %}{{ 'ab' | list }}{{ '<' | e }}"
        "{{ ', '.join(['x', 'y']) }}{{ [3, 1] | sort }}{{ 'a'.translate({97: 'b'}) }}{{ ('<' | safe).join(['>']) }}"
        "{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, z=[2]) }}{{ range(3) | list | tojson }}"
        "{% for g, all in [{'n': 1}, {'n': 1}] | groupby('n') %}{{ g }}{{ all | length }}{% endfor %}"
    )
    assert render(text) == (
        "1(2, 3){'x': [1, {'y': ()}]}1-21  277['a', 'b']a b433"
        "Truekv['a', 'b']&lt;x, y[1, 3]b&gt;(1,){'z': [2]}[0, 1, 2]12"
    )


def test_a_conversation_that_is_made_anew_for_each_message_takes_no_time() -> None:
    """As templates do that gather what they write: a list of lists is weighed once."""
    template = ChatTemplate(
        text="{% set n = namespace(x=[]) %}{% for m in messages %}{% set n.x = n.x + [m] %}{% endfor %}"
        "{{ n.x | length }}",
        tokens={}, source="a stranger",
    )  # fmt: skip
    began = time.process_time()
    assert template.render([{"role": "user", "content": "a"}] * 1000, True) == "1000"
    assert time.process_time() - began < 10


def test_long_conversations_are_rendered() -> None:
    """Ten million characters: more than any context holds."""
    template = ChatTemplate(
        text="{% set n = namespace(x='') %}{% for m in messages %}{% set n.x = n.x ~ m.content %}{% endfor %}{{ n.x }}",
        tokens={}, source="a stranger",
    )  # fmt: skip
    assert len(template.render([{"role": "user", "content": "a" * 100_000}] * 100, True)) == 10_000_000
