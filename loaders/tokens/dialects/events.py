"""What an answer consists of, in order, and the list that a reading fills.

Events only extend what came before: text is appended, a piece of arguments once given is never taken back. Calls are
numbered from 0 in the order in which they begin; one ends before the next begins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Reasoning:
    """More of what the model thinks."""

    text: str


@dataclass(frozen=True)
class Text:
    """More of what it says."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A call of the tool `name` begins. id: what the tool's answer refers to."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of the JSON text of a call's arguments."""

    index: int
    piece: str


@dataclass(frozen=True)
class CallEnd:
    """A call's arguments are complete, or will not be."""

    index: int


Event = Reasoning | Text | CallStart | CallArguments | CallEnd
SPACE = " \t\r\n"


class Output:
    """Events of one answer, with the blanks left out that dialects put around their marks.

    make_id: makes an id of a call. trims: whether line breaks at the start belong to the template.
    """

    def __init__(self, make_id: Callable[[], str], trims: bool) -> None:
        self.make_id, self.trims = make_id, trims
        self.calls = 0
        self.has_text = self.has_thoughts = False  # other than blanks; text since the last call
        self._events: list[Event] = []
        self._space = ""  # at the end of text or reasoning: what follows decides whether it counts
        self._before_text = self._before_thoughts = ""  # what parts the next piece from one before

    def take(self) -> list[Event]:
        """The events since the last time."""
        found, self._events = self._events, []
        return found

    def text(self, piece: str) -> None:
        """More of what is said."""
        if solid := self._solid(piece):
            if not self.has_text and self.trims and not self.calls:
                solid = solid.lstrip("\n")
            self._extend(Text, self._before_text + solid)
            self.has_text, self._before_text = True, ""

    def reasoning(self, piece: str) -> None:
        """More of what is thought."""
        if solid := self._solid(piece):
            if self._before_thoughts or not self.has_thoughts:
                solid = self._before_thoughts + solid.lstrip(SPACE)
            self._extend(Reasoning, solid)
            self.has_thoughts, self._before_thoughts = True, ""

    def _solid(self, piece: str) -> str:
        """What can be given: all up to the last blanks."""
        whole = self._space + piece
        solid = whole.rstrip(SPACE)
        self._space = whole[len(solid) :]
        return solid

    def _extend(self, kind: type[Text] | type[Reasoning], piece: str) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, (Text, Reasoning)) and type(last) is kind:
            self._events[-1] = kind(last.text + piece)
        else:
            self._events.append(kind(piece))

    def drop_space(self) -> None:
        """Leaves out the blanks before a mark."""
        self._space = ""

    def keep_space(self, thinking: bool) -> None:
        """Gives the blanks before what ends the answer: they belong to the text, if there is some."""
        if not thinking and self.has_text and self._space:
            self._extend(Text, self._space)
        self._space = ""

    def begin(self, thinking: bool) -> None:
        """Reasoning or a message begins; one before it is a paragraph of its own."""
        self._space = ""
        if thinking and self.has_thoughts:
            self._before_thoughts = "\n\n"
        elif not thinking and self.has_text:
            self._before_text = "\n\n"

    def start_call(self, name: str, id: str | None = None) -> None:
        """A call begins."""
        self.drop_space()
        self._events.append(CallStart(self.calls, id or self.make_id(), name))
        self.calls += 1
        self.has_text = False

    def arguments(self, piece: str) -> None:
        """More of the arguments of the call that has begun last."""
        if not piece:
            return
        last = self._events[-1] if self._events else None
        if isinstance(last, CallArguments):
            self._events[-1] = CallArguments(last.index, last.piece + piece)
        else:
            self._events.append(CallArguments(self.calls - 1, piece))

    def end_call(self) -> None:
        """It ends."""
        self._events.append(CallEnd(self.calls - 1))

    def forget_text(self) -> None:
        """Leaves out text, reasoning and blanks so far: they are the prompt's."""
        self._events = [one for one in self._events if not isinstance(one, (Text, Reasoning))]
        self._space = ""
