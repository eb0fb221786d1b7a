"""Chat templates as released models have them, against transformers: system, tools, thinking on and off, calls.

Templates of the shape of gpt-oss's are here. Where HEADRACE_TEMPLATES names a folder, every .jinja in it is held too:

    HEADRACE_TEMPLATES=FOLDER python -m pytest tests/tokens/test_released_templates.py
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from vocabularies import byte_level, made, save

from headrace.errors import TokenizerError

FOLDER = os.environ.get("HEADRACE_TEMPLATES")
FILES = sorted(Path(FOLDER).glob("*.jinja")) if FOLDER else []
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather", "description": "The weather of a city.",
        "parameters": {
            "type": "object", "required": ["city"],
            "properties": {
                "city": {"type": "string", "description": "Its name"},
                "unit": {"type": "string", "enum": ["C", "F"], "default": "C"}, "days": {"type": "integer"},
            },
        },
    },
}  # fmt: skip
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln & <Bonn>"}}}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "Hi <&> 日本"}],
    "system": [
        {"role": "system", "content": "Be terse."}, {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"}, {"role": "user", "content": "c\n"},
    ],
    "thought": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "let me see", "thinking": "let me see"},
        {"role": "user", "content": "c"},
    ],
    "tools": [
        {"role": "system", "content": "Use tools."}, {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "name": "get_weather", "content": '{"t": 20}'},
        {"role": "assistant", "content": "20 degrees."}, {"role": "user", "content": "Thanks"},
    ],
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "thinking": {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"},
    "no thinking": {"enable_thinking": False, "thinking": False, "reasoning_effort": "low"},
    "tools": {"tools": [TOOL]},
}
# Channels, dates, types of tools by macros, and a system message before the developer's, as gpt-oss has them.
CHANNELS = """{%- macro type_of(spec) -%}
    {%- if spec.type == "array" -%}{{ type_of(spec['items']) + "[]" }}
    {%- elif spec.enum is defined -%}{{ '"' + spec.enum|join('" | "') + '"' }}
    {%- elif spec.type in ["integer", "number"] -%}number
    {%- else -%}{{ spec.type }}{%- endif -%}
{%- endmacro -%}
{%- macro listed(tools) -%}
    {%- for tool in tools %}{%- set it = tool.function -%}
        {{- "// " + it.description + "\\ntype " + it.name + " = (_: {\\n" -}}
        {%- for name, spec in it.parameters.properties.items() -%}
            {%- if spec.description %}{{ "// " + spec.description + "\\n" }}{% endif -%}
            {{- name + ("" if name in it.parameters.required else "?") + ": " + type_of(spec) + "," -}}
            {%- if spec.default is defined and spec.default is string %}{{ " // default: " + spec.default }}{% endif -%}
            {{- "\\n" -}}
        {%- endfor -%}
        {{- "}) => any;\\n" -}}
    {%- endfor -%}
{%- endmacro -%}
{%- if reasoning_effort is not defined %}{% set reasoning_effort = "medium" %}{% endif -%}
{{- "<|start|>system<|message|>Current date: " + strftime_now("%Y-%m") + "\\nReasoning: " + reasoning_effort -}}
{{- "<|end|>" -}}
{%- if messages[0].role in ["developer", "system"] -%}
    {%- set instructions, rest = messages[0].content, messages[1:] -%}
{%- else -%}
    {%- set instructions, rest = "", messages -%}
{%- endif -%}
{%- if instructions or tools -%}
    {{- "<|start|>developer<|message|>" + instructions + (listed(tools) if tools else "") + "<|end|>" -}}
{%- endif -%}
{%- set last = namespace(name=none, done=false) -%}
{%- for message in rest -%}
    {%- if message.role == "assistant" and message.tool_calls -%}
        {%- if message.content and message.thinking -%}
            {{- raise_exception("Cannot pass both content and thinking of a message with a tool call") -}}
        {%- endif -%}
        {%- set call = message.tool_calls[0].function -%}{%- set last.name = call.name -%}
        {{- "<|start|>assistant to=functions." + call.name + "<|message|>" + call.arguments|tojson + "<|call|>" -}}
        {%- continue -%}
    {%- elif message.role == "tool" -%}
        {%- if last.name is none %}{{ raise_exception("a tool's answer that nobody asked for") }}{% endif -%}
        {{- "<|start|>functions." + last.name + "<|message|>" + message.content|tojson + "<|end|>" -}}
    {%- elif message.role == "assistant" -%}
        {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" -}}
    {%- else -%}
        {{- "<|start|>user<|message|>" + message.content + "<|end|>" -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ "<|start|>assistant" }}{% endif -%}
"""
# Thoughts of earlier turns left out, the last question found backwards, parts of text, as Qwen's and GLM's have them.
THOUGHTS = """{%- set ns = namespace(last=0) -%}
{%- for message in messages[::-1] -%}
    {%- set index = (messages|length - 1) - loop.index0 -%}
    {%- if ns.last == 0 and message.role == "user" and message.content is string
        and not (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) -%}
        {%- set ns.last = index -%}{%- break -%}
    {%- endif -%}
{%- endfor -%}
{%- if tools -%}
{{- '[TOOLS]' -}}{%- for tool in tools %}{{ "\\n" }}{{ tool | tojson(ensure_ascii=False) }}{% endfor %}
{%- endif -%}
{%- for message in messages -%}
    {%- set content = message.content if message.content is string else '' -%}
    {%- if message.role == "assistant" -%}
        {%- set thought = message.reasoning_content if message.reasoning_content is string else '' -%}
        {%- if '</think>' in content -%}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
        {%- endif -%}
        {{- '<|im_start|>assistant\\n' -}}
        {%- if loop.index0 > ns.last and (loop.last or thought) -%}
            {{- '<think>' + thought.strip() + '</think>' -}}
        {%- endif -%}
        {{- content -}}
        {%- for call in message.tool_calls or [] -%}
            {%- set call = call.function if call.function else call -%}
            {{- '<tool_call>' + call.name -}}
            {%- for key, value in call.arguments.items() -%}
                {{- '<' ~ key ~ '>' ~ (value if value is string else value | tojson) ~ '</' ~ key ~ '>' -}}
            {%- endfor -%}
            {{- '</tool_call>' -}}
        {%- endfor -%}
        {{- '<|im_end|>\\n' -}}
    {%- elif message.role == "tool" -%}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{ '<|im_start|>user' }}{% endif -%}
        {{- '\\n<tool_response>' + content + '</tool_response>' -}}
        {%- if loop.last or loop.nextitem.role != "tool" %}{{ '<|im_end|>\\n' }}{% endif -%}
    {%- else -%}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif -%}
{%- endif -%}
"""
TEMPLATES = {"channels": CHANNELS, "thoughts": THOUGHTS, **{path.stem: path.read_text() for path in FILES}}


@pytest.fixture(scope="module")
def chatty() -> tokenizers.Tokenizer:
    return byte_level()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory, chatty: tokenizers.Tokenizer) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast.from_pretrained(save(tmp_path_factory.mktemp("oracle"), chatty))


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_it_reads_as_with_transformers(
    name: str, setting: str, chat: str, theirs: Any, chatty: tokenizers.Tokenizer
) -> None:
    """Where a template refuses a chat, it does for both."""
    template, values = TEMPLATES[name], SETTINGS[setting]
    given = {key: value for key, value in values.items() if key != "tools"}
    ours = made(chatty, template)
    try:
        wanted = theirs.apply_chat_template(
            CHATS[chat], chat_template=template, tokenize=False, add_generation_prompt=True, **values
        )
    except Exception:
        with pytest.raises(TokenizerError):
            ours.render_chat(CHATS[chat], tools=values.get("tools"), arguments=given)
        return
    assert wanted
    assert ours.render_chat(CHATS[chat], tools=values.get("tools"), arguments=given) == wanted


def test_what_a_template_says_of_a_chat_is_passed_on(chatty: tokenizers.Tokenizer) -> None:
    odd = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "thinking": "c", "tool_calls": [CALL]},
    ]
    with pytest.raises(TokenizerError, match="Cannot pass both content and thinking"):
        made(chatty, CHANNELS).render_chat(odd)
