"""Answers that follow a grammar: a JSON schema, a regular expression, Lark or GBNF, by the llguidance library.

A token is drawn first, as without a grammar, and taken if the grammar allows it: that costs microseconds, and is what
happens nearly always. Only one that is refused costs a mask over the vocabulary and a second draw among what is
allowed. With a temperature alone this draws exactly what masking before every draw would.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeVar

import numpy
import torch
from torch import Tensor

from ....errors import OptionError, short
from ....loaders.tokens.dialects.forms.lark import BLANKS
from ....loaders.tokens.dialects.lexer import is_tag
from ....loaders.tokens.template_sandbox import bounded
from ....loaders.tokens.tokenizer import Tokenizer
from ...config import SamplingParams
from .long_stack import on_a_long_stack

MOST_SCHEMA = 1 << 20  # characters
GBNF_SECONDS = 5.0  # of its translation, which for rules in a long row takes time by the square of them
log = logging.getLogger("headrace")
_LARK = re.compile(r"^\s*\??start\s*(\[[^\]]*\])?\s*:", re.MULTILINE)
MOST_KEPT = 32  # grammars that are compiled
T = TypeVar("T")


def library() -> Any:
    """llguidance; raises OptionError where it is missing."""
    try:
        import llguidance
    except ModuleNotFoundError:
        raise OptionError(
            "grammars need the llguidance package, which is not installed: pip install 'headrace[serve]'"
        ) from None
    return llguidance


@dataclass(frozen=True)
class Waking:
    """What wakes a grammar that sleeps (`held_calls.py`): a pattern of the text that the reader of a dialect sees, and
    the sign that it ends with. repeats: whether it sleeps again at its end; else the answer ends there."""

    pattern: re.Pattern[str]
    last: str
    repeats: bool


class Grammar:
    """A grammar by its text; checked when it is made. waking: behind what it holds; None: from the beginning on. Raises
    OptionError that says what is wrong."""

    def __init__(self, text: str, waking: Waking | None = None) -> None:
        if len(text) > MOST_SCHEMA:
            raise OptionError(f"the grammar has {len(text)} characters; give {MOST_SCHEMA} at most")
        self.text, self.waking = text, waking
        matcher = library().LLMatcher
        is_error, messages = on_a_long_stack(lambda: matcher.validate_grammar_with_warnings(text), len(text))
        if is_error:
            raise OptionError(f"the grammar cannot be used: {short(' '.join(messages), 200)}")

    @classmethod
    def of_schema(cls, schema: Mapping[str, Any] | bool | str) -> Grammar:
        """What a JSON schema allows."""
        if schema is False:
            raise OptionError("the JSON schema cannot be used: false allows nothing")
        schema = {} if schema is True else schema
        try:
            text = schema if isinstance(schema, str) else json.dumps(schema)
            return cls(library().LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": BLANKS}))
        except (ValueError, RecursionError) as error:
            raise OptionError(f"the JSON schema cannot be used: {short(str(error), 200)}") from None

    @classmethod
    def of_regex(cls, pattern: str) -> Grammar:
        """What a regular expression matches, as a whole."""
        return cls(library().LLMatcher.grammar_from_regex(pattern))

    @classmethod
    def of_lark(cls, text: str) -> Grammar:
        """What a grammar in Lark's syntax allows, or in llama.cpp's GBNF."""
        if "::=" in text:
            from llguidance.gbnf_to_lark import gbnf_to_lark

            if len(text) > MOST_SCHEMA:
                raise OptionError(f"the GBNF grammar has {len(text)} characters; give {MOST_SCHEMA} at most")
            try:
                with bounded(GBNF_SECONDS):
                    text = gbnf_to_lark(text)
            except TimeoutError:
                raise OptionError(
                    f"the GBNF grammar takes more than {GBNF_SECONDS:g} s to translate: put rules behind those that "
                    "they refer to, or give Lark"
                ) from None
            except Exception as error:  # of a parser that promises no kind of error
                raise OptionError(f"the GBNF grammar cannot be read: {short(str(error), 200)}") from None
        return cls.of_rules(text)

    @classmethod
    def of_rules(cls, text: str, waking: Waking | None = None) -> Grammar:
        """What a grammar in Lark's syntax allows, whatever its texts look like."""
        return cls(library().LLMatcher.grammar_from_lark(text), waking)

    @classmethod
    def of_text(cls, text: str) -> Grammar:
        """What a text says that may be any of these: GBNF, Lark, or a regular expression."""
        return cls.of_lark(text) if "::=" in text or _LARK.search(text) else cls.of_regex(text)

    @classmethod
    def of_params(cls, params: SamplingParams) -> Grammar | None:
        """The form that an answer is to have by its parameters; None: any. Raises OptionError that names the field."""
        wanted: tuple[tuple[str, Any, Callable[[Any], Grammar]], ...] = (
            ("json_schema", params.json_schema, cls.of_schema), ("grammar", params.grammar, cls.of_text),
        )  # fmt: skip
        for name, value, make in wanted:
            if value is not None:
                try:
                    return make(value)
                except OptionError as error:
                    raise OptionError(f"{name}: {error}") from None
        return None

    @classmethod
    def of_choices(cls, choices: Sequence[str]) -> Grammar:
        """One of several texts."""
        if not choices:
            raise OptionError("there are no texts to choose from: give at least one")
        return cls.of_lark("start: " + " | ".join(map(json.dumps, choices)))


class Vocabulary:
    """The tokens of a model as grammars see them; made when it is first asked for, which takes seconds for a large one.
    Threads may ask at the same time."""

    def __init__(self, tokenizer: Tokenizer, size: int, ends: Sequence[int]) -> None:
        self.tokenizer, self.ends = tokenizer, tuple(ends)
        self._size = size
        self._lock = threading.Lock()
        self._made: Any = None
        self._matchers: OrderedDict[str, Any] = OrderedDict()  # at their beginning, by the texts of their grammars
        self._grammars: OrderedDict[str, Grammar | None] = OrderedDict()

    def made(self) -> Any:
        """The library's tokenizer. Raises OptionError for a tokenizer that the library cannot read."""
        with self._lock:
            if self._made is None:
                size = max(self._size, self.tokenizer.vocab_size)
                text = _with_marks(self.tokenizer.to_json())
                make = library().LLTokenizer
                try:
                    self._made = make(text, n_vocab=size, eos_token=list(self.ends))
                except Exception as error:  # of a library that promises no kind of error
                    raise OptionError(
                        f"answers cannot follow a grammar with this tokenizer ({short(str(error), 100)}): leave it out"
                    ) from None
            return self._made

    def kept(self, key: str, make: Callable[[], Grammar | None]) -> Grammar | None:
        """The grammar of that key, made where it is not among the last ones."""
        return self._among(self._grammars, key, make)

    def matcher(self, grammar: Grammar) -> Any:
        """What follows a grammar from its beginning on. The grammar is compiled once, as long as it is among the last
        ones."""
        made = self.made()
        found = self._among(self._matchers, grammar.text, lambda: _compiled(made, grammar.text))
        return found.deep_copy()

    def _among(self, last: OrderedDict[str, T], key: str, make: Callable[[], T]) -> T:
        """What is known by a key, or is made now; the last MOST_KEPT are known. Two threads may make the same."""
        with self._lock:
            if key in last:
                last.move_to_end(key)
                return last[key]
        found = make()
        with self._lock:
            last[key] = found
            while len(last) > MOST_KEPT:
                last.popitem(last=False)
        return found

    def tokens_of(self, text: str) -> list[int]:
        """Some tokens that spell a text."""
        found: list[int] = self.made().tokenize_str(text)
        return found

    def constraint(
        self, grammar: Grammar, is_free: Callable[[], bool] = lambda: False, openers: Sequence[str] = ()
    ) -> Constraint:
        """A grammar for one answer. is_free: whether what is written now is none of what the grammar is about, as
        reasoning; openers: marks with which that may begin."""
        marks = [self.tokenizer.encode(one, add_special_tokens=False) for one in openers]
        return Constraint(self.matcher(grammar), self.ends, is_free, marks)


def _compiled(vocabulary: Any, text: str) -> Any:
    return on_a_long_stack(lambda: library().LLMatcher(vocabulary, text, log_level=0), len(text))


def _with_marks(tokenizer: str) -> str:
    """A tokenizer whose marks, as <tool_call>, are special: a text that only looks like one is none, as for those who
    read answers."""
    whole = json.loads(tokenizer)
    for token in whole.get("added_tokens") or ():
        token["special"] = token["special"] or is_tag(token["content"])
    return json.dumps(whole)


class Constraint:
    """A grammar on its way through one answer. error: why it could not go on, "" as long as it does."""

    def __init__(
        self, matcher: Any, ends: Sequence[int], is_free: Callable[[], bool], openers: Sequence[list[int]] = ()
    ) -> None:
        self._matcher, self._ends, self._is_free = matcher, ends, is_free
        self._openers, self._opening = openers, list[int]()  # that an answer may begin with; what is left of one
        self.error = ""
        self.masked = 0  # tokens that were drawn a second time

    @property
    def is_awake(self) -> bool:
        """Whether it has a say now."""
        return True

    def settle(self, token: int, redraw: Callable[[Tensor], int]) -> int:
        """The token that is taken for one that was drawn. redraw: draws among those that a mask allows (bool [V])."""
        if self._opening:
            return self._opening.pop(0)
        matcher, openers = self._matcher, self._openers
        self._openers = ()
        opener = next((one for one in openers if one[:1] == [token]), None)
        if opener is not None and matcher.validate_tokens([token]) != 1:
            self._opening = opener[1:]
            return token
        if self._is_free():
            return token
        if matcher.is_stopped():
            is_over = not matcher.is_error()
            return (token if token in self._ends else self._ends[0]) if is_over else self._fail(token)
        if matcher.validate_tokens([token]) != 1:
            token = redraw(self._mask())
            self.masked += 1
        return token if matcher.consume_token(token) else self._fail(token)

    def forced(self) -> list[int]:
        """The tokens that follow whatever is drawn, as the tokenizer would cut their text; none where there is a
        choice."""
        if not self.is_awake or self._opening or self._is_free():
            return []
        found: list[int] = self._matcher.compute_ff_tokens()
        return list(takewhile(lambda token: token not in self._ends, found))

    def follow(self, token: int) -> bool:
        """Takes a token that is forced. False if it is not, after all."""
        if not self.is_awake or self._matcher.validate_tokens([token]) != 1:
            return False
        return bool(self._matcher.consume_token(token))

    def allows(self, tokens: list[int]) -> int:
        """How many of some tokens may follow each other, as far as can be said now: all where it has no say. What is
        said here takes no token; each is settled when it is drawn."""
        if not self.is_awake or self._opening or self._openers or self._is_free():
            return len(tokens)
        return int(self._matcher.validate_tokens(tokens))

    def next_forced(self) -> int | None:
        """The token that is forced now, where each has a pass of its own; None: one is to be drawn."""
        found = next(iter(self.forced()), None)
        return found if found is not None and self.follow(found) else None

    def _fail(self, token: int) -> int:
        """What is taken where the grammar cannot go on: the answer ends, with an error."""
        self.error = self._matcher.get_error() or f"token {token} is not allowed, and no other goes on"
        log.warning("the grammar could not be followed: %s", self.error)
        return self._ends[0]

    def _mask(self) -> Tensor:
        bits = numpy.frombuffer(self._matcher.compute_bitmask(), dtype=numpy.uint8)
        return torch.from_numpy(numpy.unpackbits(bits, bitorder="little").astype(bool))
