"""POST /v1/messages: Anthropic's API, to the messages that templates read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec

from ...config import SamplingParams
from ..service import PromptAsk
from . import fields
from .errors import bad_request

# A line that changes with every session, in front of the system text: with it no prefix would ever be found again.
BILLING = "x-anthropic-billing-header"


class Thinking(msgspec.Struct, kw_only=True):
    """Whether the model is to think: enabled, disabled or adaptive."""

    type: str | None = None


class OutputConfig(msgspec.Struct, kw_only=True):
    """How much it is to think, and what form its answer has."""

    effort: str | None = None
    format: dict[str, Any] | None = None


class MessagesRequest(fields.Sampled, kw_only=True):
    """The body of a request."""

    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


def prompt_of(asked: MessagesRequest) -> PromptAsk:
    """What the prompt is made of; raises ApiError for what cannot be done."""
    fields.check_sizes(asked.messages, asked.tools)
    thinks = None if asked.thinking is None else {"enabled": True, "disabled": False}.get(asked.thinking.type or "")
    effort = None if asked.output_config is None else asked.output_config.effort
    messages = [*_system(asked.system), *_all(asked.messages)]
    continues = bool(messages) and _is_begun(messages[-1])
    return PromptAsk(
        messages=messages,
        tools=tools_of(asked) or None,
        arguments=fields.template_arguments(effort, asked.chat_template_kwargs, thinks),
        add_generation_prompt=not continues,
        continues=continues,
    )


def _is_begun(last: dict[str, Any]) -> bool:
    """Whether a conversation ends with words of the answer, which by this API goes on with them."""
    return last["role"] == "assistant" and bool(last["content"]) and "tool_calls" not in last


def params_of(asked: MessagesRequest, defaults: SamplingParams) -> SamplingParams:
    """How tokens are chosen."""
    asked.stop = asked.stop_sequences or asked.stop
    return fields.sampling(asked, defaults, asked.max_tokens)


def tools_of(asked: MessagesRequest) -> list[dict[str, Any]]:
    """Tools as OpenAI's API has them. Those that a server would run itself have no schema, and are left out."""
    return [
        {
            "type": "function",
            "function": {
                "name": one.get("name"),
                "description": one.get("description") or "",
                "parameters": one["input_schema"],
            },
        }
        for one in asked.tools or ()
        if isinstance(one.get("input_schema"), dict)
    ]


def _system(system: str | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    blocks = [{"type": "text", "text": system}] if isinstance(system, str) else list(system or ())
    while blocks and str(blocks[0].get("text", "")).startswith(BILLING):
        blocks.pop(0)
    text = "\n".join(_text(one, "system") for one in blocks)
    return [{"role": "system", "content": text}] if text else []


def _all(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for place, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, (str, list)):
            raise bad_request(f"messages.{place}: give role and content (text, or a list of blocks)", "messages")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not all(isinstance(one, dict) for one in blocks):
            raise bad_request(f"messages.{place}: a block of content is no object", "messages")
        where = f"messages.{place}"
        found += [_assistant(blocks, where)] if role == "assistant" else _others(role, blocks, where)
    return found


def _assistant(blocks: list[dict[str, Any]], where: str) -> dict[str, Any]:
    """What the model said before: text, thinking, calls."""
    text, thought, calls = [], [], []
    for one in blocks:
        if one.get("type") == "thinking":
            thought.append(str(one.get("thinking") or ""))
        elif one.get("type") == "tool_use":
            function = {"name": one.get("name"), "arguments": json.dumps(one.get("input") or {}, ensure_ascii=False)}
            calls.append({"id": one.get("id"), "type": "function", "function": function})
        elif one.get("type") != "redacted_thinking":
            text.append(_text(one, where))
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(text)}
    if any(thought):
        message["reasoning_content"] = "\n".join(thought)
    if calls:
        message["tool_calls"] = calls
    return message


def _others(role: str, blocks: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """What a user says, after the results of tools, which are messages of their own."""
    results = [_result(one, where) for one in blocks if one.get("type") == "tool_result"]
    text = [_text(one, where) for one in blocks if one.get("type") != "tool_result"]
    return [*results, *([{"role": role, "content": "\n".join(text)}] if text else [])]


def _result(block: dict[str, Any], where: str) -> dict[str, Any]:
    content = block.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    text = "\n".join(_text(one, where) for one in parts)
    said = f"Error: {text}" if block.get("is_error") else text
    return {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": said}


def _text(block: Any, where: str) -> str:
    """The text of a block; raises ApiError for images and other things that are no text."""
    text = block.get("text") if isinstance(block, dict) else None
    if not isinstance(text, str):
        kind = block.get("type") if isinstance(block, dict) else type(block).__name__
        raise bad_request(f"{where}: a block of type {kind!r}: this engine reads text", "messages")
    return text
