"""Grammars for calls of tools, in the words of the model's dialect: a call that must come, or the call of one tool.

Only of dialects whose calls are JSON between marks. The others are refused by name, so that a choice is never taken
for "auto".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ....loaders.tokens.conversation import tools_of
from ....loaders.tokens.dialects.dialect import Dialect
from ....loaders.tokens.tokenizer import Tokenizer
from ...generation.grammar import BLANKS, Grammar
from ..wire.errors import bad_request

Schema = Mapping[str, Any]


def of_calls(
    dialect: Dialect,
    tools: Any,
    tokenizer: Tokenizer,
    *,
    only: str | None = None,
    several: bool = True,
    or_else: Schema | None = None,
) -> Grammar:
    """One call or several. only: of this tool; or_else: or an answer of this schema instead. Raises ApiError where
    that cannot be had, OptionError for schemas that cannot be used."""  # fmt: skip
    opens, closes = dialect.call
    if dialect.style != "json" or dialect.separators or not opens:
        raise bad_request(
            f"tool_choice: calls cannot be forced in the dialect of this model ({dialect.name}): give 'auto' or 'none'",
            "tool_choice",
        )
    named = [tool["function"] for tool in tools_of(tools) or () if only in (None, tool["function"]["name"])]
    if not named:
        known = f"there is no tool {only!r}" if only else "there are no tools"
        raise bad_request(f"tool_choice asks for a call, and {known}: give tools", "tool_choice")
    call = {"anyOf": [_schema(one) for one in named], "x-guidance": {"whitespace_pattern": BLANKS}}
    begin, end = _mark(opens[0], tokenizer), (_mark(closes[0], tokenizer) if closes else '""')
    lines = [
        f"start: calls{' | answer' if or_else is not None else ''}",
        f"calls: call{' (BREAK call)*' if several and only is None else ''}",
        f"call: {begin} BREAK json BREAK {end}",
        f"json: %json {json.dumps(call)}",
        r"BREAK: /\n?/",
    ]
    if or_else is not None:
        lines.append(f"answer: %json {json.dumps({**or_else, 'x-guidance': {'whitespace_pattern': BLANKS}})}")
    return Grammar.of_lark("\n".join(lines))


def _schema(function: Schema) -> dict[str, Any]:
    """A call of a function as JSON: its name, then its arguments."""
    return {
        "type": "object",
        "properties": {
            "name": {"const": function["name"]},
            "arguments": function.get("parameters") or {"type": "object"},
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _mark(text: str, tokenizer: Tokenizer) -> str:
    """A mark in a grammar: a special token by its number, else its text."""
    number = tokenizer.token_id(text) if tokenizer.is_special(text) else None
    return json.dumps(text) if number is None else f"<[{number}]>"


def forced_names(choice: Any) -> tuple[bool, str | None]:
    """Whether a choice of tools asks for a call, and of which tool; of the chat API's choices and Anthropic's. Raises
    ApiError for a choice that is none."""
    if choice in (None, "auto", "none"):
        return False, None
    if choice in ("required", "any"):
        return True, None
    if isinstance(choice, Mapping):
        kind, function = choice.get("type"), choice.get("function")
        if kind in ("auto", "none"):
            return False, None
        if kind in ("any", "required"):
            return True, None
        name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
        if kind in ("function", "tool") and isinstance(name, str):
            return True, name
    raise bad_request(
        f"tool_choice {choice!r} is none: give auto, none, required, or a tool by its name", "tool_choice"
    )


def leaves_out(choice: Any) -> bool:
    """Whether no call may come."""
    return choice == "none" or (isinstance(choice, Mapping) and choice.get("type") == "none")


def single(parallel: bool | None, choice: Any) -> bool:
    """Whether at most one call may come."""
    disabled = isinstance(choice, Mapping) and choice.get("disable_parallel_tool_use") is True
    return parallel is False or disabled
