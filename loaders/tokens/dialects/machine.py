"""The machine that reads one answer: tokens in, events out.

    machine = start(dialect, tools=tools, prompt_tail=prompt[-400:], tokenizer=tokenizer)
    stream = tokenizer.stream(marks=machine.marks)
    for token_id in answer:
        events = machine.push(token_id, stream.push(token_id))
    events = machine.finish()

All that the model writes comes out as reasoning, as text, or as the name and arguments of a call; what looks like a
call and is none, or calls what is no tool, is text. However the answer is cut into tokens, the events together are the
same.
"""

from __future__ import annotations

import random
import string
from collections.abc import Generator
from typing import Any

from ..conversation import tools_of
from ..tokenizer import Tokenizer
from .arguments import Tools
from .calls import Calls
from .channels import CHANNEL, CONSTRAIN, ENDS, MESSAGE, START, Channels
from .dialect import Dialect
from .events import Event, Output
from .lexer import Marks, Source, Vocabulary, Wait
from .tagged import QUOTE

_ALPHANUMERIC = string.ascii_letters + string.digits


def start(
    dialect: Dialect,
    *,
    tools: Any = None,
    prompt_tail: str = "",
    tokenizer: Tokenizer | None = None,
    chance: random.Random | None = None,
) -> Machine:
    """A machine for one answer.

    tools: functions that the model may call, as in OpenAI's API; without any, nothing is a call. prompt_tail: the end
    of the prompt as text, with special tokens spelled, from before the answer's turn begins; it says whether reasoning
    is open already. tokenizer: says which marks are tokens; without one all are looked for as text. chance: where ids
    of calls come from. Raises TokenizerError for tools that are none.
    """
    known = Tools(tools_of(tools))
    vocabulary = marks_of(dialect, tokenizer)
    machine = Machine(dialect, known, vocabulary, chance or random.SystemRandom())
    machine.begin(_answer_so_far(dialect, prompt_tail))
    return machine


def marks_of(dialect: Dialect, tokenizer: Tokenizer | None) -> Vocabulary:
    """Which marks of a dialect are tokens."""
    return Vocabulary(_texts(dialect), {} if tokenizer is None else tokenizer.added_tokens)


class Machine:
    """Reads one answer; made by `start`."""

    def __init__(self, dialect: Dialect, tools: Tools, vocabulary: Vocabulary, chance: random.Random) -> None:
        self.dialect = dialect
        self.in_reasoning = False
        self._chance = chance
        self._source = Source(vocabulary)
        self._out = Output(self._make_id, trims=dialect.think is not None)
        self._calls = Calls(self._source, self._out, dialect, tools)
        opens, closes = dialect.think or ((), ())
        self._opens, self._closes = ([vocabulary.spell(one) for one in side] for side in (opens, closes))
        self._reading: Generator[None, None, None] = self._read()

    @property
    def has_calls(self) -> bool:
        """Whether a call has begun."""
        return self._out.calls > 0

    @property
    def marks(self) -> frozenset[int]:
        """Ids of the tokens that part reasoning, text and calls, for `Tokenizer.stream`: a character that is not
        complete before one of them is then no part of what follows."""
        return self._source.vocabulary.ids

    def begin(self, prompt: str) -> None:
        """Takes what the prompt already has of the answer; its text is none of the answer's."""
        self._source.add(self._source.vocabulary.spell(prompt))
        self._run()
        self._out.forget_text()

    def push(self, token_id: int, piece: str) -> list[Event]:
        """What a token adds. piece: the text that it completes, as `Tokenizer.stream` gives it; "" for special tokens.
        A token that ends the answer may be left out."""
        self._source.add(self.spelled(token_id, piece))
        return self._run()

    def spelled(self, token_id: int, piece: str) -> str:
        """What a token adds to the text in which marks are looked for (`lexer.py`)."""
        return self._source.vocabulary.text_of(token_id, piece)

    def finish(self, cut: bool = False) -> list[Event]:
        """What was waited for, after the last token. Arguments that are not complete are completed; cut: they are left
        as they are, because the answer ended at its longest."""
        self._source.ended, self._source.is_cut = True, cut
        return self._run()

    def _run(self) -> list[Event]:
        next(self._reading, None)
        return self._out.take()

    def _make_id(self) -> str:
        if self.dialect.ids == "nine":
            return "".join(self._chance.choices(_ALPHANUMERIC, k=9))
        return f"call_{self._chance.getrandbits(96):024x}"

    # ---- what is read

    def _read(self) -> Wait[None]:
        if self.dialect.style == "channels":
            yield from Channels(self._source, self._out, self._calls, self._think).read()
        else:
            yield from self._content()
        self._out.keep_space(self.in_reasoning)

    def _think(self, whether: bool) -> None:
        self.in_reasoning = whether

    def _content(self) -> Wait[None]:
        """Text, with reasoning and calls in it."""
        marks = Marks([*self._opens, *self._closes, *self._calls.openers.texts, *self._calls.closers.texts])
        while (mark := (yield from self._source.until(marks, self._out.text))) is not None:
            if mark in self._opens and not self._out.has_text:
                self._out.begin(thinking=True)
                yield from self._thoughts()
            elif mark in self._calls.openers.texts and (yield from self._calls.read(mark)):
                continue
            elif mark in self._opens or mark in self._calls.openers.texts or self._out.has_text:
                self._out.text(self._source.vocabulary.literal(mark))
            elif mark in self._closes or self.has_calls:
                self._out.drop_space()  # closes what is closed already
            else:
                self._out.text(self._source.vocabulary.literal(mark))

    def _thoughts(self) -> Wait[None]:
        """Reasoning up to its end, or up to a call that ends it."""
        self.in_reasoning = True
        marks = Marks([*self._opens, *self._closes, *self._calls.openers.texts])
        had = self._out.has_thoughts
        while (mark := (yield from self._source.until(marks, self._out.reasoning))) is not None:
            if mark in self._closes:
                break
            if mark in self._opens and self._out.has_thoughts == had:
                continue  # the prompt opened it, and so does the model
            is_call = mark in self._calls.openers.texts and (yield from self._is_no_draft())
            if is_call and (yield from self._calls.read(mark)):
                break
            self._out.reasoning(self._source.vocabulary.literal(mark))
        else:
            return
        self.in_reasoning = False
        self._out.drop_space()

    def _is_no_draft(self) -> Wait[bool]:
        """Whether a call within reasoning, of which the first mark was read, is one."""
        return not self.dialect.drafts or (yield from self._source.ahead(self._ends_with_calls()))

    def _ends_with_calls(self) -> Wait[bool]:
        """Whether nothing but calls follows: then the end of reasoning is missing."""
        source, closers = self._source, self._calls.closers
        marks = Marks([*closers.texts, *self._closes])
        while True:
            mark = yield from source.until(marks, lambda _: None)
            if mark is None or mark in self._closes:
                return mark is None and not source.is_cut
            yield from source.spaces()
            if (yield from source.is_at_end()):
                return True
            if not (yield from source.next_of(self._calls.openers)):
                return False


def _texts(dialect: Dialect) -> list[str]:
    """All that a dialect looks for."""
    pairs = [pair for pair in (dialect.think, dialect.section, dialect.call) if pair]
    texts = [text for pair in pairs for side in pair for text in side] + [*dialect.separators]
    if tags := dialect.tags:
        texts += [tags.key, *(mark for mark, _ in tags.key_end), *tags.name_end, *tags.name_before]
        texts += [*tags.value, *tags.value_end, *tags.end]
    if dialect.style == "channels":
        texts += [START, CHANNEL, MESSAGE, CONSTRAIN, *ENDS]
    return texts + [QUOTE] * (dialect.style == "braces")


def _answer_so_far(dialect: Dialect, prompt: str) -> str:
    """What a prompt has behind the beginning of the answer's turn; where that is not there, an open mark at its end."""
    turn = max(((prompt.rfind(one) + len(one)) for one in dialect.turns if one in prompt), default=None)
    if turn is not None:
        return prompt[turn:]
    opens = dialect.think[0] if dialect.think else ()
    return next((one for one in opens if prompt.rstrip().endswith(one.strip())), "")
