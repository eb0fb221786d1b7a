"""POST /v1/responses: OpenAI's newer API, without state: a request brings its whole conversation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec

from ...config import SamplingParams
from ..service import PromptAsk
from . import fields
from .errors import bad_request

TEXT_PARTS = ("input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text")


class ReasoningAsk(msgspec.Struct, kw_only=True):
    """How much the model is to think."""

    effort: str | None = None


class TextAsk(msgspec.Struct, kw_only=True):
    """What form text has."""

    format: dict[str, Any] | None = None


class ResponsesRequest(fields.Sampled, kw_only=True):
    """The body of a request."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningAsk | None = None
    text: TextAsk | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    metadata: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


def prompt_of(asked: ResponsesRequest) -> PromptAsk:
    """What the prompt is made of; raises ApiError for what cannot be done."""
    for name in ("previous_response_id", "conversation"):
        if getattr(asked, name) is not None:
            raise bad_request(f"{name} is not supported: this server keeps no conversations, send all of it", name)
    system = [{"role": "system", "content": asked.instructions}] if asked.instructions else []
    items = [{"role": "user", "content": asked.input}] if isinstance(asked.input, str) else asked.input
    if not items:
        raise bad_request("input is empty: give text, or a list of items", "input")
    effort = None if asked.reasoning is None else asked.reasoning.effort
    return PromptAsk(
        messages=[*system, *_all(items)],
        tools=tools_of(asked) or None,
        arguments=fields.template_arguments(effort, asked.chat_template_kwargs),
    )


def params_of(asked: ResponsesRequest, defaults: SamplingParams) -> SamplingParams:
    """How tokens are chosen."""
    return fields.sampling(asked, defaults, asked.max_output_tokens)


def tools_of(asked: ResponsesRequest) -> list[dict[str, Any]]:
    """Functions as the chat API has them; kinds of tools that only a vendor runs are left out."""
    return [
        {
            "type": "function",
            "function": {key: one[key] for key in ("name", "description", "parameters") if one.get(key) is not None},
        }
        for one in asked.tools or ()
        if one.get("type") == "function"
    ]


def _all(items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages from items. Reasoning, text and calls that follow each other are one message of the assistant."""
    found: list[dict[str, Any]] = []
    for place, item in enumerate(items):
        kind = item.get("type") or ("message" if "role" in item else None)
        if kind == "message" and item.get("role") != "assistant":
            found.append({"role": item.get("role"), "content": _text(item.get("content"), place)})
        elif kind == "message":
            _assistant(found, "content")["content"] = _text(item.get("content"), place)
        elif kind == "reasoning":
            thought = _text(item.get("content") or item.get("summary") or "", place)
            if thought:
                _assistant(found, "reasoning_content", "content", "tool_calls")["reasoning_content"] = thought
        elif kind == "item_reference":
            raise bad_request(f"input.{place}: this server keeps no items: send the item itself, not its id", "input")
        elif kind in ("function_call", "custom_tool_call"):
            given = json.dumps({"input": item["input"]}) if "input" in item else "{}"
            function = {"name": item.get("name"), "arguments": item.get("arguments") or given}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            _assistant(found).setdefault("tool_calls", []).append(call)
        elif kind in ("function_call_output", "custom_tool_call_output"):
            said = _text(item.get("output"), place)
            found.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": said})
    for message in found:
        if message["role"] == "assistant":
            message.setdefault("content", "")
    return found


def _assistant(found: list[dict[str, Any]], *without: str) -> dict[str, Any]:
    """The assistant's message that is being put together; a new one where that has a part already that begins one."""
    last = found[-1] if found else {}
    if last.get("role") != "assistant" or any(name in last for name in without):
        found.append({"role": "assistant"})
    return found[-1]


def _text(content: Any, place: int) -> str:
    """The text of an item; raises ApiError for images and other things that are no text."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        if not isinstance(part, dict) or part.get("type") not in TEXT_PARTS:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise bad_request(f"input.{place}: a part of type {kind!r}: this engine reads text", "input")
    return "\n".join(str(part.get("text") or part.get("refusal") or "") for part in parts)
