"""Messages of a chat as OpenAI's API has them, brought into the form that a chat template reads.

A template reads `content` as text, and most read the arguments of a call as a mapping. Clients send lists of parts,
null beside calls, arguments as JSON text, reasoning by three names, and system messages anywhere. Other keys (`name`,
`tool_call_id`) pass as they are. Knows no template and no model: `Ways` says what a template reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import TokenizerError

Message = Mapping[str, Any]
EXAMPLE = '{"role": "user", "content": "Hello"}'
REASONING = "reasoning_content"
PARAGRAPH = "\n\n"
ABSENT = object()
DEEPEST = 8  # parts within parts


@dataclass(frozen=True, kw_only=True)
class Ways:
    """How a template reads messages.

    as_mapping: arguments of calls as mappings, else as JSON text. developer: whether it knows that role; it is the
    system's otherwise. late_system: whether a system message may stand anywhere. joint: between text parts. thoughts:
    keys of an assistant's reasoning. null_beside_calls: whether calls count only beside content that is null.
    """

    as_mapping: bool = True
    developer: bool = True
    late_system: bool = True
    joint: str = "\n"
    thoughts: tuple[str, ...] = (REASONING,)
    null_beside_calls: bool = False


def normalise(messages: Any, ways: Ways = Ways()) -> list[dict[str, Any]]:
    """The messages as a template reads them.

    Raises TokenizerError for what is no message, or holds what this engine cannot read.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise TokenizerError(f"the chat has no messages: give a list of at least one, such as {EXAMPLE}")
    found = [_message(place, one, ways) for place, one in enumerate(messages)]
    _restore_ids(found)
    found = _in_order_of_calls(found)
    return found if ways.late_system else _fold_system(found)


def _message(place: int, message: Any, ways: Ways) -> dict[str, Any]:
    role = message.get("role") if isinstance(message, Mapping) else None
    if not isinstance(role, str):
        raise TokenizerError(f"message {place} of the chat has no role (a string): each is an object such as {EXAMPLE}")
    found = {key: value for key, value in message.items() if value is not None}
    found["role"] = "system" if role == "developer" and not ways.developer else role
    calls = found.get("tool_calls")
    if calls is not None:
        found["tool_calls"] = _calls(place, calls, ways.as_mapping)
        if not calls:
            del found["tool_calls"]
    if role == "assistant":
        _set_reasoning(found, ways.thoughts)
    content = found.get("content", message.get("content", ABSENT))
    found["content"] = _content(place, content, ways.joint, is_answer=role == "assistant")
    if ways.null_beside_calls and found.get("tool_calls") and not found["content"]:
        found["content"] = None
    return found


def _content(place: int, content: Any, joint: str, is_answer: bool) -> str:
    """The text of a message. Null and no parts are none, as of a tool that gave nothing; answers may be without."""
    if isinstance(content, str):
        return content
    if content is None or (is_answer and content is ABSENT):
        return ""
    if isinstance(content, list):
        return joint.join(_part(place, part) for part in content if not (is_answer and _is_thought(part)))
    raise TokenizerError(
        f"message {place} of the chat has no content (a string, or a list of text parts): each is an object such as "
        f"{EXAMPLE}"
    )


def _part(place: int, part: Any) -> str:
    text = part.get("text", part.get("refusal")) if isinstance(part, Mapping) else part
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise TokenizerError(f"message {place} of the chat has a part of type {kind!r}: this engine reads text parts")
    return text


# ---- reasoning


def _is_thought(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in ("reasoning", "thinking")


def _set_reasoning(message: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Gives an assistant's reasoning, by whichever name it came, by the names that the template reads."""
    content = message.get("content")
    parts = [part for part in content if _is_thought(part)] if isinstance(content, list) else []
    sources = [message.pop(key, None) for key in (REASONING, "reasoning", "reasoning_details")]
    text = next((found for one in (*sources, parts) if (found := _text_in(one))), None)
    if text is None and "" not in sources:
        return
    both = text and content and isinstance(content, str) and message.get("tool_calls") and "thinking" not in message
    for key in keys:
        message.setdefault(key, text or "")
    if both and "thinking" in keys:  # beside calls gpt-oss's template has room for one of them, and refuses two
        message.update({"thinking": f"{text}{PARAGRAPH}{content}", "content": ""})


def _text_in(value: Any, depth: int = 0) -> str:
    """The text of reasoning: a string, a part, or a list of parts, of which encrypted ones have none, nor has what lies
    deeper than any API's."""
    if isinstance(value, str):
        return value
    if depth == DEEPEST:
        return ""
    if isinstance(value, list):
        return PARAGRAPH.join(filter(None, (_text_in(one, depth + 1) for one in value)))
    if isinstance(value, Mapping):
        texts = (_text_in(value.get(key), depth + 1) for key in ("text", "thinking", "summary"))
        return next((found for found in texts if found), "")
    return ""


# ---- tools


def _restore_ids(messages: list[dict[str, Any]]) -> None:
    """Ids of the form functions.NAME:3, of which some clients keep only letters, digits, _ and -, as they were: the
    model has learnt them so. Only where the call's own name is in them."""
    restored: dict[str, str] = {}
    for message in messages:
        for call in message.get("tool_calls", ()):
            old = call.get("id")
            match = re.fullmatch(rf"functions[_-]{re.escape(call['function']['name'])}[_-](\d+)", str(old))
            if match:
                call["id"] = restored[str(old)] = f"functions.{call['function']['name']}:{match.group(1)}"
        if message["role"] == "tool" and str(message.get("tool_call_id")) in restored:
            message["tool_call_id"] = restored[message["tool_call_id"]]


def _in_order_of_calls(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers of tools in the order of their calls: some templates go by their place."""
    found, order = list[dict[str, Any]](), dict[Any, int]()
    start = 0
    for message in messages:
        found.append(message)
        if message["role"] != "tool":
            start = len(found)
            order = {call.get("id"): place for place, call in enumerate(message.get("tool_calls", ()))}
        elif all(one.get("tool_call_id") in order for one in found[start:]):
            found[start:] = sorted(found[start:], key=lambda one: order[one["tool_call_id"]])
    return found


# ---- system messages


def _fold_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Later system messages as part of the user's turn where they stand: moved to the front they would change how every
    prompt begins, and nothing that was computed could be used again."""
    found: list[dict[str, Any]] = []
    waiting: list[str] = []  # to be put before the user's next words
    for message in messages:
        before = found[-1]["role"] if found else None
        if message["role"] == "system" and before in ("system", "user"):
            found[-1] = _with(found[-1], found[-1]["content"], message["content"])
        elif message["role"] == "system" and before is not None:
            waiting.append(message["content"])
        elif message["role"] == "user":
            found.append(_with(message, *waiting, message["content"]))
            waiting = []
        else:
            found += [{"role": "user", "content": PARAGRAPH.join(waiting)}] if waiting else []
            found.append(message)
            waiting = []
    return [*found, {"role": "user", "content": PARAGRAPH.join(waiting)}] if waiting else found


def _with(message: dict[str, Any], *texts: str) -> dict[str, Any]:
    return {**message, "content": PARAGRAPH.join(text for text in texts if text)}


# ---- calls


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
        except (ValueError, RecursionError):
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
