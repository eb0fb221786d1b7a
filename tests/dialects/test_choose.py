"""Which dialect a model has, by what its template and its vocabulary spell."""

from __future__ import annotations

import pytest
from reading import TOKENS
from vocabularies import byte_level, made

from headrace.errors import TokenizerError
from headrace.loaders.tokens.dialects import families
from headrace.loaders.tokens.dialects.choose import FAMILIES, choose
from headrace.loaders.tokens.tokenizer import Tokenizer

# How the calls of an earlier turn look in templates.
SPELLED = {
    "hermes": '{{ \'<tool_call>\\n{"name": "\' + call.name }}</tool_call><think></think>',
    "qwen-coder": "<tool_call>\n<function={{ call.name }}>\n<parameter={{ key }}>\n<think></think>",
    "deepseek-v3": "{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + call.name }}",
    "deepseek-dsml": "{% set dsml_token = '｜DSML｜' %}",
    "kimi": "<|tool_calls_section_begin|><|tool_call_begin|>{{ call.id }}",
    "harmony": "{{ '<|start|>assistant<|channel|>analysis<|message|>' }}",
    "glm": "{{ '<tool_call>' + call.name }}<arg_key>{{ key }}</arg_key><think>",
    "minimax": "{% set begin = '<minimax:tool_call>' %}<invoke name=",
    "mistral": "{{ '[TOOL_CALLS] [' }}",
    "granite-3": "{{ '<|tool_call|>' }}",
    "gemma-4": "{{ '<|tool_call>call:' + call.name }}",
    "thinking": "{{ '<think></think>' }}",
    "none": "{% for m in messages %}{{ m.content }}{% endfor %}",
}


def vocabulary(*texts: str, template: str | None = None) -> Tokenizer:
    core = byte_level()
    core.add_special_tokens(list(texts))
    return made(core, template)


@pytest.mark.parametrize("name", families.NAMES)
def test_a_template_says_which(name: str) -> None:
    found = choose(vocabulary(template=SPELLED[name]))
    assert found.dialect.name == name
    assert found.by == ("nothing" if name == "none" else "template")
    assert choose(None, template=SPELLED[name]).dialect.name == name


@pytest.mark.parametrize("name", families.NAMES)
def test_a_vocabulary_says_which(name: str) -> None:
    """Where there is no template, as with DeepSeek V3.2, which builds its prompts by a program."""
    tokens = TOKENS[name]
    found = choose(vocabulary(*tokens))
    wanted = {"qwen-coder": "hermes"}.get(name, name)  # their tokens are the same
    assert found.dialect.name == wanted


def test_a_template_counts_more_than_a_vocabulary() -> None:
    """Qwen's vocabulary has tokens for calls whether or not the model makes any."""
    assert choose(vocabulary("<tool_call>", "<think>", template=SPELLED["none"])).dialect is families.NONE
    assert choose(vocabulary("<tool_call>", template=SPELLED["qwen-coder"])).dialect is families.QWEN_CODER
    assert choose(vocabulary("<tool_call>", template=SPELLED["thinking"])).dialect is families.THINKING
    # Kimi K2's first template does not write calls, and its vocabulary has the marks.
    assert choose(vocabulary("<|tool_call_begin|>", template=SPELLED["none"])).dialect is families.KIMI


def test_a_family_counts_where_nothing_is_spelled() -> None:
    assert {name: choose(None, family=name).dialect for name in FAMILIES} == FAMILIES
    assert choose(None, family="gpt_oss").by == "family"
    assert choose(vocabulary(template=SPELLED["none"]), family="gpt_oss").dialect is families.NONE
    assert choose(None, family="olmoe").dialect is families.NONE
    assert str(choose(None)).startswith("none: neither")
    assert str(choose(None, family="gpt_oss")) == "harmony, by the family"


def test_a_user_may_say_which() -> None:
    assert choose(vocabulary(template=SPELLED["hermes"]), wanted="glm").dialect is families.GLM
    assert str(choose(None, wanted="none")) == "none, by its name"
    with pytest.raises(TokenizerError, match=r"no dialect 'qwen': choose one of none, thinking, hermes"):
        choose(None, wanted="qwen")
