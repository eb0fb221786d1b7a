"""Chat templates against transformers, which made the dialect, and against templates that mean harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from vocabularies import byte_level, made, save

from headrace.errors import TokenizerError
from headrace.loaders.tokens.template_sandbox import Sandbox
from headrace.loaders.tokens.tokenizer import Tokenizer

CHAT = [
    {"role": "system", "content": "You are <b>terse</b>."},
    {"role": "user", "content": "Grüße & 日本 😀 'quotes'"},
    {"role": "assistant", "content": "  spaced  "},
    {"role": "user", "content": "Again?\n"},
]
CHATML = (
    "{% for message in messages %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' -}}\n"
    "{% endif %}\n"
)


@pytest.fixture(scope="module")
def chatty() -> tokenizers.Tokenizer:
    return byte_level()


def theirs(tmp_path: Path, core: tokenizers.Tokenizer, template: str, **values: Any) -> str:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(save(tmp_path / "oracle", core))
    return str(tokenizer.apply_chat_template(chat_template=template, tokenize=False, **values))


TEMPLATES = {
    "chatml": CHATML,
    "tojson": "{{ messages | tojson }}|{{ messages[0] | tojson(indent=2) }}|{{ {'b': 1, 'a': '<é>'} | tojson }}",
    "tokens": "{{ bos_token }}{% for m in messages %}{{ m.content | trim }}{{ eos_token }}{% endfor %}{{ pad_token }}",
    "loop": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ loop.index }}{{ m.role }}"
    "{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}",
    "tools": "{{ 'tools' if tools is not none else 'no tools' }}{{ documents is none }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "dict": "{% set d = dict(a=1) %}{{ d.a }}{{ d | length }}",
    "generation": "{% for m in messages %}{% generation %}\n  {% set x = 1 %}{{ m.content }}\n{% endgeneration %}\n"
    "{{ x is defined }}{% endfor %}",
    "whitespace": "  {% if true %}\n  a\n  {% endif %}\n\n  {%- for m in messages -%}\n x {%+ if true %}y{% endif %}\n"
    "{% endfor %}\n",
    "methods": "{{ messages[0].content.split(' ')[-1] }}{{ messages[0]['content'][4:] }}"
    "{{ messages[-1].items() | list }}",
    "macro": "{% macro say(m) %}[{{ m.role }}]{% endmacro %}{% for m in messages %}{{ say(m) }}{% endfor %}",
    "year": "{{ strftime_now('%Y') | length }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [True, False])
def test_chats_agree_with_transformers(tmp_path: Path, chatty: tokenizers.Tokenizer, name: str, prompt: bool) -> None:
    template = TEMPLATES[name]
    ours = made(chatty, template).render_chat(CHAT, add_generation_prompt=prompt)
    assert ours == theirs(tmp_path, chatty, template, conversation=CHAT, add_generation_prompt=prompt)


def test_a_chat_reads_as_it_should(chatty: tokenizers.Tokenizer) -> None:
    text = made(chatty, CHATML).render_chat([{"role": "user", "content": "Hi <&>"}])
    assert text == "<|im_start|>user\nHi <&><|im_end|>\n<|im_start|>assistant\n"


def test_a_template_that_is_given_is_compiled_once(
    chatty: tokenizers.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server with --chat-template gives it with every request."""
    compiled: list[str] = []
    compile_it = Sandbox.from_string
    monkeypatch.setattr(Sandbox, "from_string", lambda self, text: compiled.append(text) or compile_it(self, text))
    tokenizer, other = made(chatty, "the model's own"), CHATML.replace("assistant", "model")
    first = [tokenizer.render_chat(CHAT, template=CHATML) for _ in range(3)]
    assert first == [made(chatty, CHATML).render_chat(CHAT)] * 3
    assert compiled == [CHATML] * 2
    assert tokenizer.render_chat(CHAT, template=other) == made(chatty, other).render_chat(CHAT)
    assert compiled == [CHATML, CHATML, other, other]


def test_where_the_template_is_found(tmp_path: Path, chatty: tokenizers.Tokenizer) -> None:
    def rendered(settings: dict[str, Any]) -> str:
        return Tokenizer.load(save(tmp_path, chatty, settings)).render_chat(CHAT)

    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "from json"}))
    assert rendered({}) == "from json"
    several = [{"name": "rag", "template": "other"}, {"name": "default", "template": "from list"}]
    assert rendered({"chat_template": several}) == "from list"
    assert rendered({"chat_template": "from settings"}) == "from settings"
    (tmp_path / "chat_template.jinja").write_text("from jinja é", encoding="utf-8")
    assert rendered({"chat_template": "from settings"}) == "from jinja é"


def test_no_template_says_what_to_do(tmp_path: Path, chatty: tokenizers.Tokenizer) -> None:
    tokenizer = Tokenizer.load(save(tmp_path, chatty, {}))
    with pytest.raises(TokenizerError, match=r"no chat template.*base model; give the prompt as plain text"):
        tokenizer.render_chat(CHAT)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% if %}", "Expected an expression"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ 1 + 'a' }}", "unsupported operand"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{% include 'other' %}", "no loader"),
    ],
)
def test_a_failing_template_is_explained(chatty: tokenizers.Tokenizer, template: str, said: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        made(chatty, template).render_chat(CHAT)
    assert said in str(caught.value)
    assert "chat template of here failed" in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ dict.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ namespace(__class__=1) }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ self._TemplateReference__context.environment }}{{ cycler.__init__.__globals__.os.popen('true').read() }}",
    ],
)
def test_unsafe_templates_are_refused(chatty: tokenizers.Tokenizer, template: str) -> None:
    messages = [dict(message) for message in CHAT]
    with pytest.raises(TokenizerError, match="does what the sandbox forbids"):
        made(chatty, template).render_chat(messages)
    assert messages == CHAT


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "the chat has no messages"),
        ([{"content": "x"}], "message 0 of the chat has no role"),
        ([CHAT[0], {"role": "user"}], "message 1 of the chat has no content"),
        ([{"role": "user", "content": {}}], "has no content"),
        (["hello"], "message 0 of the chat has no role"),
    ],
)
def test_messages_are_checked(chatty: tokenizers.Tokenizer, messages: Any, said: str) -> None:
    with pytest.raises(TokenizerError, match=said):
        made(chatty, CHATML).render_chat(messages)
