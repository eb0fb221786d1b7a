"""Messages of a chat as OpenAI's API has them, brought into the form that chat templates read.

A template reads `content` as text, and most read the arguments of a call as a mapping. Clients send lists of parts,
null beside calls, and arguments as JSON text. Other keys (`name`, `tool_call_id`, `reasoning_content`) pass as they
are. Knows no template and no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...errors import TokenizerError

Message = Mapping[str, Any]
EXAMPLE = '{"role": "user", "content": "Hello"}'


def normalise(messages: Any, *, as_mapping: bool = True, developer: bool = True) -> list[dict[str, Any]]:
    """The messages with text for content, and arguments of calls as mappings (else as JSON text).

    developer: whether the template knows that role; it is the system's otherwise. Raises TokenizerError for what is no
    message, or holds what this engine cannot read.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise TokenizerError(f"the chat has no messages: give a list of at least one, such as {EXAMPLE}")
    return [_message(place, one, as_mapping, developer) for place, one in enumerate(messages)]


def _message(place: int, message: Any, as_mapping: bool, developer: bool) -> dict[str, Any]:
    role = message.get("role") if isinstance(message, Mapping) else None
    if not isinstance(role, str):
        raise TokenizerError(f"message {place} of the chat has no role (a string): each is an object such as {EXAMPLE}")
    found = {key: value for key, value in message.items() if value is not None}
    found["role"] = "system" if role == "developer" and not developer else role
    calls = found.get("tool_calls")
    if calls is not None:
        found["tool_calls"] = _calls(place, calls, as_mapping)
        if not calls:
            del found["tool_calls"]
    found["content"] = _content(place, message.get("content"), optional=role == "assistant")
    return found


def _content(place: int, content: Any, optional: bool) -> str:
    """The text of a message; optional: it may have none."""
    if isinstance(content, str):
        return content
    if content is None and optional:
        return ""
    if isinstance(content, list) and content:
        return "\n".join(_part(place, part) for part in content)
    raise TokenizerError(
        f"message {place} of the chat has no content (a string, or a list of text parts): each is an object such as "
        f"{EXAMPLE}"
    )


def _part(place: int, part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise TokenizerError(f"message {place} of the chat has a part of type {kind!r}: this engine reads text parts")
    return text


def _calls(place: int, calls: Any, as_mapping: bool) -> list[dict[str, Any]]:
    """Calls of tools with their arguments in one form."""
    if not isinstance(calls, list) or not all(isinstance(one, Mapping) for one in calls):
        raise TokenizerError(f"message {place} of the chat has tool_calls that are no list of objects")
    found = []
    for call in calls:
        function = call.get("function", call)  # some clients send the function alone
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise TokenizerError(f"message {place} of the chat has a tool call without a function and its name")
        arguments = _arguments(function.get("arguments"), as_mapping)
        rest = {key: value for key, value in call.items() if key not in ("name", "arguments")}
        found.append({"type": "function", **rest, "function": {**function, "arguments": arguments}})
    return found


def _arguments(value: Any, as_mapping: bool) -> Any:
    """Arguments as a mapping, or as JSON text. Text that is no JSON, which a model may have written, is kept."""
    if isinstance(value, str) and as_mapping:
        try:
            parsed = json.loads(value) if value.strip() else {}
        except ValueError:
            return {"arguments": value}
        return parsed if isinstance(parsed, dict) else {"arguments": parsed}
    if isinstance(value, str):
        return value
    return (value or {}) if as_mapping else json.dumps(value or {}, ensure_ascii=False)


def tools_of(tools: Any) -> list[dict[str, Any]] | None:
    """Tools as templates read them: {"type": "function", "function": {...}}, of these or of the functions alone; None
    for none. Raises TokenizerError for anything else."""
    if not tools:
        return None
    if not isinstance(tools, (list, tuple)):
        raise TokenizerError("tools are no list: give a JSON list of functions with name, description and parameters")
    found = []
    for place, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise TokenizerError(f"tool {place} has no name: give functions with name, description and parameters")
        found.append({"type": "function", **(tool if "function" in tool else {}), "function": dict(function)})
    return found
