"""Seconds of a pass through whole layers on several machines, which goes from one to the next and back.

    pass = sum over stops of (round trip + rows there and back + layers) + (parts - 1) * the busiest of all
    layers = what layers of that machine were measured to take, by tokens, and the cache of longer contexts

A pass in parts has each machine at work on a part while others have the parts before and behind it, and so the
coordinator's link, which carries what goes to all of them: beyond the first part only what takes longest counts. Every
part reads all weights of a layer once more, so that more parts are not always faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .hops import Costs, Hop
from .wire_sizes import HEADER

MOST_PARTS = 8


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a pass is. is_prompt: some sequence has more than one token; context: tokens in the cache, of all sequences
    together."""

    tokens: int
    is_prompt: bool
    context: int


@dataclass(frozen=True, kw_only=True)
class Stop:
    """A machine's layers on the way of a pass. hop: None: the coordinator. decode, prompt: seconds of so many
    sequences with a token each, and of one prompt of so many tokens, at no context; context_s: on top for each token in
    the cache."""

    hop: Hop | None
    decode: Costs
    prompt: Costs
    context_s: float = 0.0

    def work_s(self, work: Work, parts: int = 1) -> float:
        """Of the machine, for one of so many parts."""
        costs = self.prompt if work.is_prompt else self.decode
        return costs.at(work.tokens / parts) + self.context_s * work.context / parts

    def wire_s(self, work: Work, row: int, parts: int = 1) -> float:
        """Of the rows of a part, in one direction."""
        return 0.0 if self.hop is None else (work.tokens / parts * row + HEADER) / self.hop.rate.mid

    def times(self, factor: float) -> Stop:
        """With so many times as many layers."""
        return Stop(
            hop=self.hop, decode=self.decode.times(factor), prompt=self.prompt.times(factor),
            context_s=self.context_s * factor,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Route:
    """All stops of a pass, in their order. row: bytes of a token on the wire; most_parts: that a pass is cut into."""

    stops: tuple[Stop, ...]
    row: int
    most_parts: int = MOST_PARTS

    def own_s(self, work: Work, parts: int = 1) -> float:
        """Of the coordinator's layers, for all parts."""
        return parts * sum(stop.work_s(work, parts) for stop in self.stops if stop.hop is None)

    def seconds(self, work: Work, parts: int = 1) -> float:
        """Until the last part is through."""
        found = [(stop, stop.work_s(work, parts), stop.wire_s(work, self.row, parts)) for stop in self.stops]
        through = sum(done + 2 * wire + (0.0 if stop.hop is None else stop.hop.round_trip.mid)
                      for stop, done, wire in found)  # fmt: skip
        here = sum(done for stop, done, _ in found if stop.hop is None)  # one machine, however often it is a stop
        shared = sum(wire for _, _, wire in found)  # of the coordinator's own link, in each direction
        busiest = max([here, shared, *(done for stop, done, _ in found if stop.hop is not None)])
        return through + (parts - 1) * busiest

    def parts(self, work: Work) -> int:
        """Of how many parts a pass takes least time."""
        return min(
            range(1, min(self.most_parts, work.tokens) + 1), key=lambda parts: (self.seconds(work, parts), parts)
        )

    def shown(self) -> Iterator[str]:
        """Of each stop what it takes for one token, for people."""
        one = Work(tokens=1, is_prompt=False, context=0)
        for stop in self.stops:
            name = "here" if stop.hop is None else stop.hop.name
            yield f"{name} {1e3 * stop.work_s(one):.2f} ms"
