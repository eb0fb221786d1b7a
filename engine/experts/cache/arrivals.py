"""Experts on their way from RAM to their places in VRAM: copies on a stream of their own, and which have arrived.

Nothing waits for a copy that was not asked for by the layer that needs it: an expert that is still on its way when its
layer chooses it is computed in RAM, where it lies too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from ....kernels.packed import ExpertBank
from ...devices.streams import Stream
from ...ledger.passes import H2D
from ...ledger.timers import Spans
from ...policies.protocol import Key
from .slots import Slots
from .zones import Move


class Arrivals:
    """banks: by layer with experts, all of them in RAM. main: the stream that reads the places, side: that of the
    copies. A copy waits for all that main was given before it, which may still read what lay there."""

    def __init__(
        self, slots: Slots, banks: Sequence[ExpertBank], main: Stream, side: Stream, spans: Spans | None = None
    ) -> None:
        self.slots, self.banks = slots, banks
        self.main, self.side, self.spans = main, side, spans
        self.coming: dict[Key, Any] = {}  # until when, as an event of the side stream
        self.left: list[Any] = []  # the same of those that left before they came

    def bring(self, keys: Sequence[Key]) -> Any:
        """Gives experts their places, for which others may move, and starts their copies; the event that has come when
        all are there."""
        self.move([move for key in keys for move in self.slots.take(key)])
        self.side.wait(self.main.record())
        self._span(None)
        for layer, expert in keys:
            self.side.copy(self.slots.at((layer, expert)), self.banks[layer].data[expert])
        self._span(H2D)
        event = self.side.record()
        self.coming.update(dict.fromkeys(keys, event))
        return event

    def move(self, moves: Sequence[Move]) -> None:
        """Experts go to other places, behind all that may still read or write there."""
        if not moves:
            return
        for event in [*(self.coming[key] for key in {move.key for move in moves} & self.coming.keys()), *self.left]:
            self.main.wait(event)
        self.left.clear()
        for move in moves:
            self.main.copy(*self.slots.ends_of(move))

    def missing(self) -> Collection[Key]:
        """The experts that are still on their way."""
        if self.coming:
            self.coming = {key: event for key, event in self.coming.items() if not self.side.reached(event)}
        return self.coming.keys()

    def all_come(self) -> None:
        """Work of main that is given from now on finds everything there."""
        self.main.wait(self.side.record())
        self.coming.clear()
        self.left.clear()

    def forget(self, key: Key) -> None:
        """An expert leaves, arrived or not: copies to its place come after its own."""
        if key in self.coming:
            self.left = [event for event in self.left if not self.side.reached(event)]
            self.left.append(self.coming.pop(key))

    def _span(self, what: str | None) -> None:
        if self.spans is not None:
            self.spans.span(what)
