"""Answers that follow a grammar: a JSON schema, a regular expression, Lark or GBNF, by the llguidance library.

A token is drawn first, as without a grammar, and taken if the grammar allows it: that costs microseconds, and is what
happens nearly always. Only one that is refused costs a mask over the vocabulary and a second draw among what is
allowed. With a temperature alone this draws exactly what masking before every draw would.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from ...errors import OptionError, short
from ...loaders.tokens.tokenizer import Tokenizer

BLANKS = r"[ \n]{0,16}"  # between what JSON consists of; without a bound some models write blanks for ever
MOST_SCHEMA = 1 << 20  # characters


def library() -> Any:
    """llguidance; raises OptionError where it is missing."""
    try:
        import llguidance
    except ModuleNotFoundError:
        raise OptionError(
            "grammars need the llguidance package, which is not installed: pip install 'headrace[serve]'"
        ) from None
    return llguidance


class Grammar:
    """A grammar by its text; checked when it is made. Raises OptionError that says what is wrong."""

    def __init__(self, text: str) -> None:
        if len(text) > MOST_SCHEMA:
            raise OptionError(f"the grammar has {len(text)} characters; give {MOST_SCHEMA} at most")
        self.text = text
        is_error, messages = library().LLMatcher.validate_grammar_with_warnings(text)
        if is_error:
            raise OptionError(f"the grammar cannot be used: {short(' '.join(messages), 200)}")

    @classmethod
    def of_schema(cls, schema: Mapping[str, Any] | bool | str) -> Grammar:
        """What a JSON schema allows."""
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

            try:
                text = gbnf_to_lark(text)
            except Exception as error:  # of a parser that promises no kind of error
                raise OptionError(f"the GBNF grammar cannot be read: {short(str(error), 200)}") from None
        return cls(library().LLMatcher.grammar_from_lark(text))

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
        self._tokenizer, self._size, self._ends = tokenizer, size, list(ends)
        self._lock = threading.Lock()
        self._made: Any = None

    def made(self) -> Any:
        """The library's tokenizer."""
        with self._lock:
            if self._made is None:
                size = max(self._size, self._tokenizer.vocab_size)
                self._made = library().LLTokenizer(self._tokenizer.to_json(), n_vocab=size, eos_token=self._ends)
            return self._made

    def constraint(self, grammar: Grammar, is_free: Callable[[int], bool] = lambda _: False) -> Constraint:
        """A grammar for one answer. is_free: whether a token is none of what the grammar is about, as of reasoning."""
        return Constraint(library().LLMatcher(self.made(), grammar.text, log_level=0), self._ends, is_free)


class Constraint:
    """A grammar on its way through one answer. error: why it could not go on, "" as long as it does."""

    def __init__(self, matcher: Any, ends: Sequence[int], is_free: Callable[[int], bool]) -> None:
        self._matcher, self._ends, self._is_free = matcher, ends, is_free
        self.error = ""
        self.masked = 0  # tokens that were drawn a second time

    def settle(self, token: int, redraw: Callable[[Tensor], int]) -> int:
        """The token that is taken for one that was drawn. redraw: draws among those that a mask allows (bool [V])."""
        if self._is_free(token):
            return token
        matcher = self._matcher
        if matcher.validate_tokens([token]) != 1:
            token = self._ends[0] if matcher.is_error() else redraw(self._mask())
            self.masked += 1
        if matcher.is_stopped() and token in self._ends:
            return token
        if not matcher.consume_token(token):
            self.error = matcher.get_error() or "no token goes on"
            return self._ends[0]
        return token

    def _mask(self) -> Tensor:
        bits = numpy.frombuffer(self._matcher.compute_bitmask(), dtype=numpy.uint8)
        return torch.from_numpy(numpy.unpackbits(bits, bitorder="little").astype(bool))
