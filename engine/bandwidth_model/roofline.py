"""The bandwidth model: what a pass reads and computes, and the seconds that takes on a machine. Plans and runs both
describe their work so, a plan with the bytes that it expects, a run with those that its ledger counted.

    pass    = sum of its steps; a step may have several ways, of which the cheapest is taken
    way     = the slowest of its branches, which work side by side; a branch is the sum of its loads
    weights = max(sum over formats of bytes / bandwidth, FLOPs / compute); of formats whose kernel was measured, bytes /
              its bandwidth x what it was measured to take with so many tokens over its time with one
    cache   = where attention was measured, bytes x seconds of a byte, by the queries that meet it; else as weights
    link    = bytes / rate

Terms are named as in the ledger and add up to more than the pass by what works side by side. Seconds are for one end of
a machine's ranges (`hardware.py`). Imports no torch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from ...kernels import FORMATS
from ...loaders.quants.by_format import ByFormat
from ...loaders.quants.encodings import ENCODINGS
from ..ledger.passes import CPU_DRAM, FIXED, Prediction
from .hardware import Device, End, Hardware

MANY = 4096.0  # queries on a key, where attention is bound by arithmetic
MANY_TOKENS = float(1 << 20)  # beyond all that was measured, where a kernel's time is proportional to the tokens
FACTOR: dict[End, float] = {"low": 1 / 0.9, "mid": 1.0, "high": 1 / 1.1}  # of a measured time, as of `Device.reads`


class Load(Protocol):
    """Something that takes time; `term`: the memory, link or cost that it is booked under."""

    @property
    def term(self) -> str: ...

    def seconds(self, machine: Hardware, end: End = "mid") -> float:
        """Of all of it, with nothing beside it but what it says itself."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights in a memory, each format read at its own rate, which `tokens` tokens (on average) are multiplied by.
    kept: the share of its rate that it keeps beside other work. times: how often; -1 takes it out of what was counted
    before."""

    term: str
    read: ByFormat
    flops: float
    tokens: float = 1.0
    experts: bool = False
    kept: float = 1.0
    times: int = 1

    @property
    def bytes(self) -> float:
        return self.read.total

    def seconds(self, machine: Hardware, end: End = "mid") -> float:
        return self._once(machine.memories[self.term], end) / self.kept * self.times

    def _once(self, device: Device, end: End) -> float:
        timed, reading, measured = 0.0, 0.0, 0.0  # seconds of measured kernels, and of the others; bytes of the former
        rate = device.flops.at(end) if device.flops else math.inf
        for name, size in self.read.parts:
            known = device.measured(name, self.experts)
            took = size / device.reads(name, self.experts).at(end)
            if known and device.slowdown is not None:
                timed, measured = timed + took * device.slowdown(name, self.tokens, self.experts), measured + size
                continue
            reading += took
            if known:  # A kernel that reads weights so fast multiplies them as fast.
                rate = max(rate, 2 * known / _bytes_per_weight(name))
        computed = self.flops * (1 - measured / self.bytes) if measured else self.flops
        return timed + max(reading, computed / rate)


def _bytes_per_weight(format: str) -> float:
    known = ENCODINGS.get(format)
    return FORMATS[format].row_bytes(4096) / 4096 if known is None else known.bytes_per_weight


def crossover(read: ByFormat, count: float, term: str, machine: Hardware, experts: bool = False) -> float | None:
    """Tokens from which arithmetic bounds so many weights, and below which reading does: where the time of many tokens,
    which grows with their number, would come to that of one. None: never, or the compute is not known."""
    one, many = (Weights(term, read, 2 * count * n, n, experts).seconds(machine) for n in (1.0, MANY_TOKENS))
    return MANY_TOKENS * one / many if many > one else None


def weights_of(read: ByFormat) -> float:
    """How many weights these bytes hold, of formats that the engine has."""
    return sum(size / _bytes_per_weight(name) for name, size in read.parts)


def behind_the_last(read: ByFormat, tokens: int, needed: int) -> tuple[Load, ...]:
    """What is behind the mixer of the last layer on a CPU, counted for `tokens` before, for those alone that are
    needed."""
    if needed >= tokens:
        return ()
    all_of_it = Weights(CPU_DRAM, read, 0, tokens, times=-1)
    return (all_of_it, Weights(CPU_DRAM, read, 0, needed)) if needed else (all_of_it,)


@dataclass(frozen=True, slots=True)
class Cache:
    """A bf16 cache: bytes that new tokens read, and that they write. flops: of all their queries, or in a state;
    intensity: FLOPs of one query for a byte (None: a state, no attention); queries: how many of a sequence's new tokens
    see a byte, on average. on_chip: the keys of a prompt stay there, and its arithmetic bounds it where attention was
    not measured."""

    term: str
    read: float
    written: float
    flops: float
    intensity: float | None = None
    queries: float = 1.0
    on_chip: bool = False

    def seconds(self, machine: Hardware, end: End = "mid") -> float:
        cost = machine.memories[self.term].cache_s
        if self.intensity is None:
            return self._of_a_state(machine, end)
        if cost is not None:
            known = self.read * cost(self.intensity * self.queries) + self.written * cost(self.intensity)
            return known * FACTOR[end]
        read = 0.0 if self.on_chip else self.read + self.written
        return Weights(self.term, ByFormat((("bf16", read),)), self.flops).seconds(machine, end)

    def _of_a_state(self, machine: Hardware, end: End) -> float:
        """Read and written once by all new tokens, whose arithmetic is as fast as that of attention where many queries
        meet a key; where attention was not measured it is counted with that of matrices."""
        cost = machine.memories[self.term].cache_s
        read = Weights(self.term, ByFormat((("bf16", self.read + self.written),)), 0).seconds(machine, end)
        return read if cost is None else max(read, self.flops * cost(MANY) / MANY * FACTOR[end])


@dataclass(frozen=True, slots=True)
class Link:
    """Bytes over a link, or from a disk. kept: the share of its rate that it keeps beside other work."""

    term: str
    bytes: float
    kept: float = 1.0

    def seconds(self, machine: Hardware, end: End = "mid") -> float:
        return self.bytes / (machine.links[self.term].at(end) * self.kept)


@dataclass(frozen=True, slots=True)
class Overhead:
    """What a pass costs besides: once, for its layers (of them `shared` with a shared expert) by the number of tokens,
    for its logits, and for each of `rows` sequences but the first that get a token."""

    tokens: int
    layers: int
    shared: int
    logits: int
    rows: int = 1
    term: str = FIXED

    def seconds(self, machine: Hardware, end: End = "mid") -> float:
        more = 0.0 if machine.more_tokens is None else machine.more_tokens(self.tokens)
        layers = self.layers * (machine.layer.at(end) + more) + self.shared * machine.shared.at(end)
        rows = max(0, self.rows - 1) * machine.row.at(end)
        return machine.fixed.at(end) + layers + self.logits * machine.logit.at(end) + rows


@dataclass(frozen=True, slots=True)
class Handoff:
    """What handing layers over between GPU and CPU costs."""

    term: str
    layers: int = 1

    def seconds(self, machine: Hardware, end: End = "mid") -> float:
        return self.layers * machine.sync.at(end)


Branch = tuple[Load, ...]
Way = tuple[Branch, ...]
Step = tuple[Way, ...]


def in_turn(*loads: Load) -> Step:
    """One after the other."""
    return ((loads,),)


def side_by_side(*branches: Branch) -> Step:
    """At the same time: the slowest counts."""
    return (branches,)


def predict(work: Iterable[Step], machine: Hardware, end: End = "mid") -> Prediction:
    """Seconds of a pass on a machine that has every memory and link of its work."""
    terms: defaultdict[str, float] = defaultdict(float)
    seconds = 0.0
    known: dict[Step, tuple[float, list[tuple[str, float]]]] = {}  # most layers of a model are alike
    for step in work:
        if step not in known:
            known[step] = min((_way(way, machine, end) for way in step), key=lambda found: found[0])
        took, way = known[step]
        seconds += took
        for term, load_s in way:
            terms[term] += load_s
    return Prediction(terms=dict(terms), seconds=seconds)


def _way(way: Way, machine: Hardware, end: End) -> tuple[float, list[tuple[str, float]]]:
    """Seconds of a way, and of each of its loads."""
    took, loads = 0.0, []
    for branch in way:
        each = [(load.term, load.seconds(machine, end)) for load in branch]
        took = max(took, sum(seconds for _, seconds in each)) if len(way) > 1 else sum(s for _, s in each)
        loads += each
    return took, loads
