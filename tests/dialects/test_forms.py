"""Whatever a grammar of calls lets a model write, the reader of its dialect finds calls of the tools in, as their
schemas say: by a model that says anything, and is fond of marks.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy
import pytest
import tokenizers
from reading import TOKENS, brief, events
from tokenizers import decoders, models, pre_tokenizers

from headrace.engine.generation.grammars.grammar import Grammar, Vocabulary
from headrace.loaders.tokens.dialects import families
from headrace.loaders.tokens.dialects.dialect import Dialect
from headrace.loaders.tokens.dialects.forms.calls import CallGrammar, grammar_of
from headrace.loaders.tokens.dialects.machine import marks_of, start
from headrace.loaders.tokens.tokenizer import Tokenizer

HELD = [dialect for dialect in families.ALL if dialect.forms]
END = "</s>"


def tool(name: str, schema: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def thing(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": required or [], "additionalProperties": False,
    }  # fmt: skip


TOOLS = [
    tool(
        "get_weather",
        thing(
            ["city"],
            city={"enum": ["Łódź", "Rome", "Rome, Italy"]},
            days={"type": "integer", "minimum": 1, "maximum": 30},
            exact={"type": "boolean"},
        ),
    ),
    tool("get", thing()),
    tool("write_file", thing(["path", "text"], path={"type": "string", "maxLength": 12}, text={"type": "string"})),
    tool(
        "search",
        thing(
            ["options"],
            queries={"type": "array", "items": {"type": "string", "maxLength": 5}, "minItems": 1, "maxItems": 3},
            options={"$ref": "#/$defs/options"},
            note={"anyOf": [{"type": "string"}, {"type": "null"}]},
            code={"type": "string", "pattern": "^[a-z]{2}-[0-9]+$"},
        )
        | {"$defs": {"options": thing(["deep"], deep={"type": "number"}, kind={"enum": ["a", "b", 3]})}},
    ),
]  # fmt: skip


@cache
def tokenizer(name: str, with_marks: bool) -> Tokenizer:
    """Bytes, the marks of a dialect, and some tokens that reach over what marks consist of."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("<", "/"), ("Ċ", "<"), (">", "Ċ"), ('"', ">"), ('"', ":"), ("}", "}"), ("Ċ", "Ċ"), ("a", "r")]
    whole = {one: place for place, one in enumerate([*alphabet, *("".join(pair) for pair in pairs)])}
    core.model = models.BPE(vocab=whole, merges=pairs)
    core.add_special_tokens([END])
    if with_marks:
        core.add_tokens(TOKENS[name])
    return Tokenizer(core, {"eos_token": END}, {}, "here")


@cache
def vocabulary(name: str, with_marks: bool) -> Vocabulary:
    found = tokenizer(name, with_marks)
    return Vocabulary(found, found.vocab_size, found.eos_ids)


def made(dialect: Dialect, with_marks: bool, tools: Any = TOOLS, **how: Any) -> CallGrammar:
    marks = marks_of(dialect, tokenizer(dialect.name, with_marks))
    return grammar_of(dialect, tools, marks, **how)


def is_json(dialect: Dialect) -> bool:
    return dialect.style in ("json", "channels")


def snippets(dialect: Dialect, with_marks: bool) -> list[str]:
    """What is said more often than chance would: marks, and what stands between them. No marks that are plain text in
    dialects of JSON: there a reader ends a call where two marks stand within a text."""
    tags = dialect.tags
    marks = [
        *dialect.opens_call,
        *dialect.call[1],
        *(dialect.section[1] if dialect.section else ()),
        *dialect.separators,
    ]
    if tags is not None:
        marks += [tags.key, *(mark for mark, _ in tags.key_end), *tags.value_end, *tags.end]
        marks.append(f"{tags.value_end[0]}\n{tags.end[0]}")
    marks += ["<|end|>", "<|start|>", "<|message|>", '<|"|>']
    if is_json(dialect):
        marks = [mark for mark in marks if with_marks and mark in TOKENS[dialect.name]]
    return [*marks, "}", '"}', "]", '"]', '"', ", ", "Rome", "city", "get", "\n"]


def says(vocab: Vocabulary, grammar: Grammar, chance: random.Random, fond_of: list[str], prefix: str = "") -> list[int]:
    """What a model says that draws among what is allowed, until nothing is; a text comes to its end sooner or later."""
    core, matcher = vocab.tokenizer, vocab.matcher(grammar)
    known = [core.encode(one, add_special_tokens=False) for one in fond_of]
    said: list[int] = core.encode(prefix, add_special_tokens=False)
    start = len(said)
    while not matcher.is_stopped():
        assert not matcher.is_error(), matcher.get_error()
        assert len(said) < 6000, core.decode(said)
        chance.shuffle(known)
        for some in known if chance.random() < 0.4 else ():
            if matcher.validate_tokens(some) == len(some):
                assert matcher.consume_tokens(some)
                said += some
                break
        else:
            if matcher.is_accepting() and chance.random() < 0.5:
                break
            bits = numpy.unpackbits(numpy.frombuffer(matcher.compute_bitmask(), dtype=numpy.uint8), bitorder="little")
            allowed = [int(one) for one in numpy.flatnonzero(bits) if int(one) not in core.eos_ids]
            assert allowed, f"nothing goes on behind {core.decode(said)!r}"
            drawn = chance.choice(allowed)
            assert matcher.consume_token(drawn)
            said.append(drawn)
    assert len(said) > start
    return said


def is_allowed(value: Any, schema: Any, whole: Any) -> bool:
    """Whether a JSON schema of the tools above allows a value."""
    if "$ref" in schema:
        schema = whole["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    if "anyOf" in schema:
        return any(is_allowed(value, one, whole) for one in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    kind = schema.get("type")
    if kind == "object":
        named = schema.get("properties", {})
        needed = all(one in value for one in schema.get("required", ()))
        fits = all(name in named and is_allowed(one, named[name], whole) for name, one in value.items())
        return isinstance(value, dict) and needed and (fits or not named)
    if kind == "array":
        items = all(is_allowed(one, schema["items"], whole) for one in value)
        return isinstance(value, list) and items and schema["minItems"] <= len(value) <= schema["maxItems"]
    if kind == "string":
        is_short = isinstance(value, str) and len(value) <= schema.get("maxLength", 10**9)
        return is_short and re.search(schema.get("pattern", ""), value) is not None
    if kind == "null":
        return value is None
    if kind == "boolean":
        return isinstance(value, bool)
    is_number = isinstance(value, int if kind == "integer" else (int, float)) and not isinstance(value, bool)
    return is_number and schema.get("minimum", value) <= value <= schema.get("maximum", value)


def read(dialect: Dialect, with_marks: bool, said: list[int], tools: Any = TOOLS) -> list[tuple[str, ...]]:
    """What the reader of the dialect finds."""
    core = tokenizer(dialect.name, with_marks)
    reader = start(dialect, tools=tools, tokenizer=core, chance=random.Random(1))
    stream = core.stream(marks=reader.marks)

    def tokens() -> Iterator[tuple[int, str]]:
        for token in said:
            yield token, stream.push(token)
        yield -1, stream.finish()

    return brief(events(reader, tokens()))


def check(found: list[tuple[str, ...]], shown: str, tools: Any = TOOLS) -> None:
    """Every event is a call that its tool's schema allows."""
    schemas = {one["function"]["name"]: one["function"]["parameters"] for one in tools}
    assert found, shown
    for kind, *rest in found:
        assert kind == "call", (kind, rest, shown)
        name, arguments = rest
        assert is_allowed(json.loads(arguments), schemas[name], schemas[name]), (name, arguments, shown)


def begun(dialect: Dialect) -> str:
    """A call up to where its grammar wakes."""
    form = dialect.forms[0]
    before, wakes, _ = (form.begin + form.before).partition(form.wakes)
    return before + wakes


@pytest.mark.parametrize("asleep", [True, False], ids=["asleep", "forced"])
@pytest.mark.parametrize("with_marks", [True, False], ids=["tokens", "text"])
@pytest.mark.parametrize("dialect", HELD, ids=lambda one: one.name)
def test_what_is_allowed_is_read_as_calls(dialect: Dialect, with_marks: bool, asleep: bool) -> None:
    vocab, is_hard = vocabulary(dialect.name, with_marks), is_json(dialect) and not with_marks
    if dialect.style == "channels" and not with_marks and not asleep:
        pytest.skip("analysis without end: nothing but chance spells the mark")
    grammar = made(dialect, with_marks, asleep=asleep, several=not is_hard)
    form = Grammar.of_rules(grammar.text)
    for seed in range(20):
        prefix = begun(dialect) if asleep else ""
        said = says(vocab, form, random.Random(seed), snippets(dialect, with_marks), prefix)
        found = [one for one in read(dialect, with_marks, said) if one[0] != "think"]
        check(found, vocab.tokenizer.decode(said, skip_special_tokens=False))


@pytest.mark.parametrize("dialect", HELD, ids=lambda one: one.name)
def test_a_grammar_grows_with_what_its_tools_have(dialect: Dialect) -> None:
    """Not with the ways to leave parameters out."""

    def size(count: int) -> int:
        many = {f"parameter_{number}": {"type": "string"} for number in range(count)}
        return len(made(dialect, True, [tool("many", thing(**many))], asleep=True).text)

    assert size(40) < 3 * size(20)
    Grammar.of_rules(
        made(dialect, True, [tool("many", thing(**{f"p{i}": {"type": "string"} for i in range(40)}))]).text
    )
