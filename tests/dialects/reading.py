"""Answers read by machines: as tokens of a vocabulary that has the marks, or that has none of them, cut in any way."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from headrace.loaders.tokens.dialects import families
from headrace.loaders.tokens.dialects.dialect import Dialect
from headrace.loaders.tokens.dialects.events import CallArguments, CallEnd, CallStart, Event, Reasoning, Text
from headrace.loaders.tokens.dialects.machine import Machine, start

Token = tuple[int, str]  # an id and the text that it gives
PLAIN = 7  # the id of every token that is no mark

# What vocabularies of these models have as tokens of their own.
TOKENS = {
    "none": [],
    "thinking": ["<think>", "</think>"],
    "hermes": ["<think>", "</think>", "<tool_call>", "</tool_call>"],
    "qwen-coder": ["<think>", "</think>", "<tool_call>", "</tool_call>"],
    "deepseek-v3": [
        "<think>", "</think>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>", "<｜tool▁sep｜>",
    ],
    "deepseek-dsml": ["<think>", "</think>", "｜DSML｜"],
    "kimi": [
        "<think>", "</think>", "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>", "<|tool_call_end|>",
    ],
    "harmony": [
        "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>",
    ],
    "glm": [
        "<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
    ],
    "minimax": ["<think>", "</think>", "<minimax:tool_call>", "</minimax:tool_call>"],
    "mistral": ["[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"],
    "granite-3": ["<|tool_call|>"],
    "gemma-4": ["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>'],
}  # fmt: skip


def function(name: str, required: list[str] | None = None, **parameters: Any) -> dict[str, Any]:
    """A tool; a parameter is a schema, or the name of its type."""
    properties = {key: {"type": one} if isinstance(one, str) else one for key, one in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": required or []}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": schema}}


TOOLS = [
    function("get_weather", ["city"], city="string", days="integer", exact="boolean"),
    function("write_file", ["path", "text"], path="string", text="string"),
    function("search", queries={"type": "array"}, options="object", note={"type": ["string", "null"]}),
    function("get_time"),
]


def vocabulary(dialect: Dialect, with_marks: bool = True) -> Any:
    """What a machine asks of a tokenizer."""
    texts = TOKENS[dialect.name] if with_marks else []
    return SimpleNamespace(added_tokens={text: 100 + place for place, text in enumerate(texts)})


def machine(
    dialect: Dialect | str, with_marks: bool = True, prompt: str = "", tools: Any = TOOLS, seed: int = 1
) -> Machine:
    if isinstance(dialect, str):
        dialect = families.NAMES[dialect]
    return start(
        dialect, tools=tools, prompt_tail=prompt, tokenizer=vocabulary(dialect, with_marks), chance=random.Random(seed)
    )


def tokens(dialect: Dialect, answer: str, with_marks: bool = True, shows_marks: bool = True) -> list[Token]:
    """An answer as tokens: marks, and characters."""
    ids = vocabulary(dialect, with_marks).added_tokens
    pattern = "|".join(sorted(map(re.escape, ids), key=len, reverse=True))
    parts = re.split(f"({pattern})", answer) if ids else [answer]
    found: list[Token] = []
    for part in parts:
        if part in ids:
            found.append((ids[part], part if shows_marks else ""))
        else:
            found += [(PLAIN, sign) for sign in part]
    return found


def joined(some: Iterable[Token], cut: Iterable[int]) -> Iterator[Token]:
    """Tokens, with characters between places `cut` put together."""
    places, text = set(cut), ""
    for place, (token, piece) in enumerate(some):
        if text and (place in places or token != PLAIN):
            yield PLAIN, text
            text = ""
        if token == PLAIN:
            text += piece
        else:
            yield token, piece
    if text:
        yield PLAIN, text


def events(reader: Machine, some: Iterable[Token], cut: bool = False) -> list[Event]:
    """All events of an answer, those that go on with one before put together."""
    found: list[Event] = []
    for token, piece in some:
        found += reader.push(token, piece)
    return merged([*found, *reader.finish(cut)])


def merged(some: Iterable[Event]) -> list[Event]:
    found: list[Event] = []
    for event in some:
        last = found[-1] if found else None
        if isinstance(event, (Text, Reasoning)) and isinstance(last, (Text, Reasoning)) and type(last) is type(event):
            found[-1] = type(event)(last.text + event.text)
        elif isinstance(event, CallArguments) and isinstance(last, CallArguments):
            assert event.index == last.index
            found[-1] = CallArguments(event.index, last.piece + event.piece)
        else:
            found.append(event)
    return found


def brief(some: Iterable[Event]) -> list[tuple[str, ...]]:
    """Events as cases write them; checks that calls are numbered, and begin and end in order."""
    found: list[tuple[str, ...]] = []
    begun = -1
    is_open = False
    for event in some:
        if isinstance(event, Reasoning):
            found.append(("think", event.text))
        elif isinstance(event, Text):
            found.append(("text", event.text))
        elif isinstance(event, CallStart):
            assert not is_open
            assert event.index == begun + 1
            assert event.name
            assert event.id
            begun, is_open = event.index, True
            found.append(("call", event.name, ""))
        elif isinstance(event, CallArguments):
            assert is_open
            assert event.index == begun
            found[-1] = (*found[-1][:2], found[-1][2] + event.piece)
        else:
            assert isinstance(event, CallEnd)
            assert is_open
            assert event.index == begun
            is_open = False
    assert not is_open
    return found
