"""An answer as blocks, one after the other: thinking, text, a call. Whole answers are read out of them, and two of the
APIs stream them so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...loaders.tokens.dialects.events import CallArguments, CallStart, Event, Reasoning, Text

THINKING, TEXT, CALL = "thinking", "text", "call"


@dataclass
class Block:
    """One block; content: its text, or the arguments of a call. id, name: of a call."""

    index: int
    kind: str
    content: str = ""
    id: str = ""
    name: str = ""


class Change(NamedTuple):
    """A block begins, grows by a piece, or ends (piece is None)."""

    block: Block
    piece: str | None
    begins: bool = False


class Blocks:
    """The blocks of one answer so far."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self._open: Block | None = None

    def add(self, events: Iterable[Event]) -> Iterator[Change]:
        """What events change."""
        for event in events:
            if isinstance(event, Reasoning):
                yield from self._grow(THINKING, event.text)
            elif isinstance(event, Text):
                yield from self._grow(TEXT, event.text)
            elif isinstance(event, CallStart):
                yield from self.close()
                yield self._begin(Block(len(self.all), CALL, id=event.id, name=event.name))
            elif isinstance(event, CallArguments):
                yield from self._grow(CALL, event.piece)

    def gather(self, events: Iterable[Event]) -> None:
        """Takes events in, for whoever reads the blocks alone."""
        for _ in self.add(events):
            pass

    def text_of(self, kind: str) -> str:
        """All that is said, or thought."""
        return "".join(one.content for one in self.all if one.kind == kind)

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The calls as OpenAI's API has them, arguments as JSON text."""
        return [
            {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": one.content}}
            for one in self.all
            if one.kind == CALL
        ]

    def _grow(self, kind: str, piece: str) -> Iterator[Change]:
        if self._open is None or self._open.kind != kind:
            yield from self.close()
            yield self._begin(Block(len(self.all), kind))
        assert self._open is not None
        self._open.content += piece
        yield Change(self._open, piece)

    def _begin(self, block: Block) -> Change:
        self.all.append(block)
        self._open = block
        return Change(block, "", begins=True)

    def close(self) -> Iterator[Change]:
        """The end of the block that is open."""
        if self._open is not None:
            yield Change(self._open, None)
            self._open = None
