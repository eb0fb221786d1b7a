"""What a machine asks of a vocabulary, a prompt and tools, and the ids it makes."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from answers import CHATML, GLM_CALL, HERMES_CALL, KIMI_CALL, OPEN, V31, WEATHER, section
from reading import TOOLS, brief, events, function, machine, merged, tokens
from vocabularies import byte_fallback, byte_level, made

from headrace.errors import TokenizerError
from headrace.loaders.tokens.dialects import families
from headrace.loaders.tokens.dialects.arguments import Tools, as_json
from headrace.loaders.tokens.dialects.events import CallArguments, CallEnd, CallStart, Event, Reasoning, Text
from headrace.loaders.tokens.dialects.machine import start
from headrace.loaders.tokens.gguf.parts import parts_of
from headrace.loaders.tokens.tokenizer import Tokenizer

VOCABULARIES = os.environ.get("HEADRACE_VOCAB")  # real ones, as GGUF files


def read(tokenizer: Tokenizer, dialect: str, ids: list[int], tools: Any = TOOLS, prompt: str = "") -> list[Event]:
    """What an answer says, read as it is read when it is generated."""
    reader = start(families.NAMES[dialect], tools=tools, prompt_tail=prompt, tokenizer=tokenizer)
    stream = tokenizer.stream(marks=reader.marks)
    found = [event for token in ids for event in reader.push(token, stream.push(token))]
    return merged([*found, *reader.finish()])


def with_tokens(core: tokenizers.Tokenizer, dialect: str, special: bool) -> Tokenizer:
    from reading import TOKENS

    added = [tokenizers.AddedToken(text, special=special, normalized=False) for text in TOKENS[dialect]]
    (core.add_special_tokens if special else core.add_tokens)(added)
    return made(core)


# ---- vocabularies


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("style", [byte_level, byte_fallback])
def test_characters_before_a_mark_stay_before_it(style: Any, special: bool) -> None:
    """Bytes of a character may be tokens, and a mark may be a token without text."""
    tokenizer = with_tokens(style(), "deepseek-v3", special)
    ids = tokenizer.encode(f"漢字 😀{V31}", add_special_tokens=False)
    assert brief(read(tokenizer, "deepseek-v3", ids)) == [("text", "漢字 😀"), ("call", "get_weather", WEATHER)]


def test_text_that_looks_like_a_mark_is_text() -> None:
    dialect = families.HERMES
    for answer in ("</think> <tool_call>", HERMES_CALL, "<think>x</think>"):
        reader = machine(dialect)
        assert brief(events(reader, [(7, sign) for sign in answer])) == [("text", answer)]
        assert not reader.has_calls


def test_a_character_cut_off_before_a_mark_is_no_part_of_what_follows() -> None:
    tokenizer = with_tokens(byte_level(), "hermes", True)
    half = tokenizer.encode("😀", add_special_tokens=False)[:-1]
    ids = [*half, *tokenizer.encode(f"{HERMES_CALL}", add_special_tokens=False)]
    assert brief(read(tokenizer, "hermes", ids)) == [("text", "\ufffd"), ("call", "get_weather", WEATHER)]


@pytest.mark.skipif(not VOCABULARIES, reason="HEADRACE_VOCAB names no folder with vocabularies of released models")
def test_a_real_vocabulary_without_the_marks() -> None:
    from headrace.loaders.files import gguf_set

    path = Path(VOCABULARIES or "") / "ggml-vocab-qwen35.gguf"
    parts = parts_of(gguf_set.of_path(path).metadata, "qwen35")
    tokenizer = Tokenizer(parts.core, parts.settings, parts.templates, "qwen35", parts.ends, parts.notes)
    assert "<tool_call>" not in tokenizer.added_tokens
    answer = "Hm 漢字.\n</think>\n\nI look.\n\n<tool_call>\n<function=get_time>\n</function>\n</tool_call>"
    ids = tokenizer.encode(answer, add_special_tokens=False)
    said = [("think", "Hm 漢字."), ("text", "I look."), ("call", "get_time", "{}")]
    assert brief(read(tokenizer, "qwen-coder", ids, prompt=OPEN)) == said


# ---- prompts


@pytest.mark.parametrize(
    ("prompt", "thinks"),
    [
        ("", False),
        (CHATML, False),
        (OPEN, True),
        (OPEN.strip(), True),
        (f"{OPEN}\n</think>\n\n", False),
        (f"{OPEN}I thought", True),
        ("<|im_start|>user\nWhat is <think>?<|im_end|>\n<|im_start|>assistant\n", False),
        ("What follows <think>\n", True),
        ("<think> is what?", False),
    ],
)
def test_the_prompt_says_whether_reasoning_is_open(prompt: str, thinks: bool) -> None:
    for with_marks in (True, False):
        reader = machine("hermes", with_marks, prompt)
        assert reader.in_reasoning == thinks
        assert reader.push(7, "x") + reader.finish() == [Reasoning("x") if thinks else Text("x")]


def test_a_call_that_the_prompt_has_begun_goes_on() -> None:
    reader = machine("hermes", prompt=f'{CHATML}<tool_call>\n{{"name": "get_weather", "arguments": ')
    found = [event for token, piece in tokens(families.HERMES, f"{WEATHER}}}\n</tool_call>") for event in
             reader.push(token, piece)]  # fmt: skip
    assert brief(merged([*found, *reader.finish()])) == [("call", "get_weather", WEATHER)]


# ---- tools and ids


def test_without_tools_nothing_is_a_call() -> None:
    for tools in (None, []):
        reader = machine("hermes", tools=tools)
        assert brief(events(reader, tokens(families.HERMES, HERMES_CALL))) == [("text", HERMES_CALL)]
        assert not reader.has_calls
    with pytest.raises(TokenizerError, match="tool"):
        machine("hermes", tools="get_weather")


def test_a_call_that_is_none_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "headrace")
    events(machine("hermes"), tokens(families.HERMES, HERMES_CALL.replace("weather", "fish") * 3))
    assert [one.message for one in caplog.records] == [
        "what looks like a call is none of a tool that was given: it stays text (hermes)"
    ]


def test_ids_are_made_or_taken() -> None:
    def ids(dialect: str, answer: str, seed: int = 1) -> list[str]:
        found = events(machine(dialect, seed=seed), tokens(families.NAMES[dialect], answer))
        return [event.id for event in found if isinstance(event, CallStart)]

    first, second = ids("hermes", HERMES_CALL * 2)
    assert first != second
    assert first.startswith("call_")
    assert len(first) == 29
    assert ids("hermes", HERMES_CALL * 2) == [first, second] != ids("hermes", HERMES_CALL * 2, seed=2)
    assert ids("kimi", section(KIMI_CALL)) == ["functions.get_weather:3"]
    (nine,) = ids("mistral", '[TOOL_CALLS][{"name": "get_time", "arguments": {}}]')
    assert len(nine) == 9
    assert nine.isalnum()
    assert ids("mistral", '[TOOL_CALLS][{"id": "A1b2C3d4E", "name": "get_time"}]') == ["A1b2C3d4E"]


def test_ids_differ_without_a_seed() -> None:
    def first_id() -> str:
        reader = start(families.HERMES, tools=TOOLS)
        (begun, *_) = reader.push(7, HERMES_CALL)
        assert isinstance(begun, CallStart)
        return begun.id

    assert first_id() != first_id()


# ---- as it comes


def test_text_and_arguments_come_as_they_are_written() -> None:
    reader = machine("hermes")
    assert reader.push(7, "Hello") == [Text("Hello")]
    assert reader.push(7, " ") == []
    assert reader.push(7, "world") == [Text(" world")]
    (opens, begun, *_) = tokens(families.HERMES, "<tool_call>{")
    assert reader.push(*opens) == reader.push(*begun) == []
    assert reader.push(7, '"name": "write_file", "arguments": ') == []  # another blank may follow
    (call, pieces) = reader.push(7, '{"text": "ab')
    assert isinstance(call, CallStart)
    assert call == CallStart(0, call.id, "write_file")
    assert pieces == CallArguments(0, '{"text": "ab')
    assert reader.push(7, "c\n") == [CallArguments(0, "c\\n")]
    assert reader.push(7, '"}') == [CallArguments(0, '"}')]
    assert reader.push(7, "}") == [CallEnd(0)]
    assert reader.has_calls


def test_a_text_value_comes_as_it_is_written() -> None:
    reader = machine("qwen-coder", with_marks=False)
    reader.push(7, "<tool_call>\n<function=write_file>\n<parameter=text>\n")
    assert reader.push(7, "def f():") == [CallArguments(0, "def f():")]
    assert reader.push(7, "\n") == []
    assert reader.push(7, '  "x"') == [CallArguments(0, '\\n  \\"x\\"')]


@pytest.mark.parametrize("cut", [True, False])
def test_arguments_are_completed_unless_the_answer_was_cut(cut: bool) -> None:
    for dialect, answer in (("hermes", HERMES_CALL), ("glm", GLM_CALL), ("deepseek-v3", V31)):
        signs = tokens(families.NAMES[dialect], answer[: answer.index("ódź")])
        (call,) = brief(events(machine(dialect), signs, cut))
        assert call[2] == ('{"city": "Ł' if cut else '{"city": "Ł"}')
    assert machine("none").finish(cut) == []


def test_an_answer_of_many_tokens_costs_the_same_for_each() -> None:
    """What was read is forgotten: also within a long value, and within a draft that is waited for."""
    reader = machine("qwen-coder", with_marks=False)
    reader.push(7, "<function=write_file><parameter=text>")
    for _ in range(20_000):
        reader.push(7, "some words ")
    assert len(reader._source.text) < 100


# ---- types


@pytest.mark.parametrize(
    ("schema", "value", "written"),
    [
        ("string", "123", '"123"'),
        ("string", "null", '"null"'),
        ("integer", " 123 ", "123"),
        ("integer", "12345678901234567890123", "12345678901234567890123"),
        ("number", "1.50", "1.50"),
        ("number", "NaN", '"NaN"'),
        ("boolean", "True", "true"),
        ("boolean", "yes", '"yes"'),
        ("null", "None", "null"),
        ("array", '["a"', '"[\\"a\\""'),
        ("object", '{"a": [1]}', '{"a": [1]}'),
        ("object", "[" * 100_000, json.dumps("[" * 100_000)),
        ({}, "7", "7"),
        ({}, "seven", '"seven"'),
        ({"type": ["string", "null"]}, "null", "null"),
        ({"type": ["string", "null"]}, "7", '"7"'),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "7", "7"),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "true", '"true"'),
        ({"enum": ["1", "2"]}, "1", '"1"'),
        ({"const": 5}, "5", "5"),
        ({"$ref": "#/$defs/Name"}, "5", '"5"'),
        ({"$ref": "#/$defs/Loop"}, "5", "5"),
        ({"$ref": 3}, "5", "5"),
        ({"type": 3}, "5", "5"),
    ],
)
def test_values_have_the_types_of_the_schema(schema: Any, value: str, written: str) -> None:
    tool = function("f", x=schema)
    tool["function"]["parameters"]["$defs"] = {"Name": {"type": "string"}, "Loop": {"$ref": "#/$defs/Loop"}}
    reader = machine("qwen-coder", tools=[tool])
    answer = f"<tool_call><function=f><parameter=x>{value}</parameter></function></tool_call>"
    (call,) = brief(events(reader, tokens(families.QWEN_CODER, answer)))
    assert call[2] == f'{{"x": {written}}}'


def test_what_tools_lack_is_no_error() -> None:
    tools = Tools([{"function": {"name": "f", "parameters": odd}} for odd in (None, [], {"properties": 3})])
    assert tools.kinds("f", "x") == {"any"}
    assert tools.with_parameters({"x"}) is None
    assert as_json("1", frozenset({"any"})) == "1"


def test_any_vocabulary_may_be_damaged() -> None:
    """Ids that are no tokens, and text that no decoder gives."""
    draw = random.Random(1)
    for dialect in families.ALL:
        reader = machine(dialect)
        for _ in range(50):
            reader.push(draw.randrange(-5, 200), draw.choice(["", "\ud800", "\udfff x", "<", "{"]))
        reader.finish()
