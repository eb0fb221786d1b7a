"""An answer as blocks, one after the other: thinking, text, a call. Two of the APIs stream it so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ....loaders.tokens.dialects.events import CallArguments, CallStart, Event, Reasoning, Text
from .usage import new_id

THINKING, TEXT, CALL = "thinking", "text", "call"


@dataclass
class Block:
    """One block; content: its text, or the arguments of a call. id, name: of a call."""

    index: int
    kind: str
    content: str = ""
    id: str = ""
    name: str = ""
    item: str = field(default_factory=lambda: new_id("item"))


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
