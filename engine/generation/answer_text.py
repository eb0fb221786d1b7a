"""Tokens of an answer to events, as they are made: reasoning, text and calls told apart, stop strings found in text.

Stop strings count in what is said, not in reasoning or in arguments of calls. Runs in the thread of the engine; whoever
reads the events may be another one.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence as Seq

from ...loaders.tokens.dialects.events import CallArguments, CallEnd, CallStart, Event, Text
from ...loaders.tokens.dialects.machine import Machine
from ...loaders.tokens.tokenizer import Tokenizer
from .grammars.held_calls import HeldCalls
from .sequence import Sequence
from .stop_strings import StopStrings

NO_TOKEN = -1


class AnswerText:
    """The events of one answer. machine: reads the dialect; None: all is text. keeps: text ends with
    the stop string that is found."""

    def __init__(
        self, tokenizer: Tokenizer | None, machine: Machine | None, stop: Seq[str], keeps: bool = False
    ) -> None:
        marks = frozenset() if machine is None else machine.marks
        self.stream = None if tokenizer is None else tokenizer.stream(marks=marks)
        self.machine, self.said = machine, StopStrings(stop, keeps)
        self.held: HeldCalls | None = None  # a grammar that sleeps until a call begins
        self.sequence: Sequence | None = None
        self.events: deque[Event] = deque()
        self.reasoning_tokens = 0
        self.has_calls = self.is_call_cut = False  # any; the last one's arguments end before they are complete
        self._arguments: list[str] | None = None  # of the call that is open

    @property
    def text(self) -> str:
        """What is said so far."""
        return self.said.text

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self.said.stopped

    def push(self, token: int) -> str:
        """Takes a token in."""
        piece = "" if self.stream is None else self.stream.push(token)
        if self.machine is None:
            return self._take([Text(piece)] if piece else [])
        found = self.machine.push(token, piece)
        self.reasoning_tokens += self.machine.in_reasoning
        if self.held is not None:
            self.held.saw(self.machine.spelled(token, piece))
        return self._take(found)

    def finish(self) -> str:
        """What was held back, after the last token."""
        if self.stopped:
            return ""
        rest = "" if self.stream is None else self.stream.finish()
        if self.machine is None:
            shown = self._take([Text(rest)] if rest else [])
        else:
            is_cut = self.sequence is not None and self.sequence.finish_reason in ("length", "interrupted")
            more = [*self.machine.push(NO_TOKEN, rest), *self.machine.finish(cut=is_cut)]
            self.is_call_cut = is_cut and self._is_open(more)
            shown = self._take(more)
        last = self.said.add("", final=True)
        if last:
            self.events.append(Text(last))
        return shown + last

    def _is_open(self, last: list[Event]) -> bool:
        """Whether the call that the last events end is not complete: its end may be there although it was never
        written."""
        for event in last:
            self._follow(event, ends=False)
        return self._arguments is not None and not is_json("".join(self._arguments))

    def _follow(self, event: Event, ends: bool = True) -> None:
        """Keeps the arguments of the call that is open."""
        if isinstance(event, CallStart):
            self.has_calls, self._arguments = True, []
        elif isinstance(event, CallArguments) and self._arguments is not None:
            self._arguments.append(event.piece)
        elif isinstance(event, CallEnd) and ends:
            self._arguments = None

    def _take(self, events: list[Event]) -> str:
        """Keeps events; of text what can be shown now."""
        shown = ""
        for event in events:
            if isinstance(event, Text):
                piece = self.said.add(event.text)
                shown += piece
                if piece:
                    self.events.append(Text(piece))
                if self.stopped:
                    break
            else:
                self._follow(event)
                self.events.append(event)
        return shown


def is_json(text: str) -> bool:
    """Whether a text is JSON as a whole."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
