"""Seconds of a layer whose experts other machines compute.

    layer  = max(the coordinator's own experts, exchange) + cost
    cost   = what a layer with hosts takes besides, by its number of tokens: measured at the start, or assumed
    exchange = the slowest host:  round trip + rows there + (its experts, and the answer back)
    rows there, answer back = max(its bytes / its link, bytes of all hosts / the coordinator's link)

All hosts are asked at once and share the coordinator's link, which is taken to be as fast as the fastest of theirs. An
answer in several pieces leaves while the next ones are computed: then the longer one of both counts, and one piece of
the other. A host reads as the device that it is, at the rates that it measured, or at a range of nominal ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ....loaders.quants.by_format import ByFormat
from ...ledger.passes import CPU_DRAM, NET
from ..hardware import Device, End, Hardware, Range
from ..profile import along
from ..roofline import Weights

if TYPE_CHECKING:
    from .stops import Route


@dataclass(frozen=True, kw_only=True, eq=False)
class Hop:
    """A host and the way there, known by which one it is. rate: bytes a second of its link, in each direction;
    round_trip: seconds of a message of no size there and back."""

    name: str
    device: Device
    rate: Range
    round_trip: Range

    @property
    def machine(self) -> Hardware:
        """The host as a machine that does nothing but compute experts."""
        return Hardware(name=self.name, cpu=self.device)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a host does in a layer. read: of its RAM; flops: in it, where its kernels' time was not measured; each:
    tokens that an expert serves on average; there, back: bytes on its link; pieces: of the answer."""

    hop: Hop
    read: ByFormat
    flops: float
    each: float
    there: float
    back: float
    pieces: int = 1

    def compute_s(self, end: End = "mid") -> float:
        """Of its experts."""
        return Weights(CPU_DRAM, self.read, self.flops, self.each, experts=True).seconds(self.hop.machine, end)


@dataclass(frozen=True)
class Exchange:
    """All hosts of a layer, side by side."""

    asked: tuple[Asked, ...]
    term: str = NET

    def seconds(self, machine: Hardware, end: End = "mid") -> float:
        """Until the last answer is here."""
        return max((found for _, found in self.by_host(end)), default=0.0)

    def by_host(self, end: End = "mid") -> list[tuple[str, float]]:
        """Of each host the seconds from the first byte sent to its answer."""
        if not self.asked:
            return []
        shared = max(one.hop.rate.at(end) for one in self.asked)
        there, back = sum(one.there for one in self.asked) / shared, sum(one.back for one in self.asked) / shared
        return [(one.hop.name, _seconds(one, there, back, end)) for one in self.asked]


def _seconds(one: Asked, there_s: float, back_s: float, end: End) -> float:
    rate = one.hop.rate.at(end)
    sent, received = max(one.there / rate, there_s), max(one.back / rate, back_s)
    computed = one.compute_s(end)
    together = max(computed, received) + min(computed, received) / one.pieces
    return one.hop.round_trip.at(end) + sent + together


@dataclass(frozen=True)
class Costs:
    """Seconds that a layer with hosts takes besides, by its tokens: Python and the system on both sides. Linear between
    the points, and beyond the last as between the last two; one point holds for any number."""

    points: tuple[tuple[float, Range], ...]

    def times(self, factor: float) -> Costs:
        """So many times as much."""
        return Costs(tuple((tokens, seconds.times(factor)) for tokens, seconds in self.points))

    def at(self, tokens: float, end: End = "mid") -> float:
        """Of a layer of so many tokens."""
        points = [(count, value.at(end)) for count, value in self.points]
        if tokens <= points[0][0] or len(points) == 1:
            return points[0][1]
        if tokens <= points[-1][0]:
            return along(points, tokens)
        (low, before), (high, after) = points[-2:]
        return after + max(0.0, after - before) * (tokens - high) / (high - low)


@dataclass(frozen=True)
class Cost:
    """Those of one layer."""

    costs: Costs
    tokens: float
    term: str = NET

    def seconds(self, machine: Hardware, end: End = "mid") -> float:
        return self.costs.at(self.tokens, end)


NOTHING = Costs(((1.0, Range(0.0, 0.0, 0.0)),))


@dataclass(kw_only=True)
class Network:
    """The hosts of a run by their numbers, from 1 on; one that comes back has its figures renewed. costs: None as long
    as they were not measured: then nothing is predicted. route: of whole layers on hosts, the same."""

    wire: str
    hops: dict[int, Hop]
    costs: Costs | None = None
    route: Route | None = None
