"""One forward pass on the ledger: bytes by tier, the time it should have taken, the time it took.

Bytes are not measured by counters in kernels. They follow exactly from what was chosen: distinct experts times the size
of an expert, matrices that every pass reads, tokens in the cache. So they are cheap to know, and for a given routing
a prediction from the model alone is right to the byte. Each byte counts once per pass: what has to cross the memory
bus at least. With one sequence a decode pass is one token.

Times are of a pass as a whole, and of each tier's work in it (`timers.py`); both have a prediction beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from . import guesses
from .guesses import Guesses

Bytes = dict[str, dict[str, int]]  # tier -> group -> bytes
# Memories that are read, and links that are crossed: host to device, back, from GPU to GPU, from a disk, and between
# machines.
CPU_DRAM, GPU_HBM, GPU1_HBM = "cpu_dram", "gpu_hbm", "gpu1_hbm"
H2D, D2H, D2D, DISK, NET = "h2d", "d2h", "d2d", "disk", "net"
MEMORIES = (GPU_HBM, GPU1_HBM, CPU_DRAM)
CHANNELS = (*MEMORIES, H2D, D2H, D2D, DISK, NET)
# Terms of a prediction that no tier causes: layers and the pass; handing a layer's experts from a GPU to the CPU.
FIXED, HANDOFF = "fixed", "handoff"


@dataclass(frozen=True, kw_only=True)
class Times:
    """What a pass's time went to, in seconds: work by tier, what the GPU stood still for by tier, work of tiers side by
    side, waiting in which none worked, and what lay outside of the GPU's work and waiting (`timers.py`). None: the GPU
    was not timed, only the CPU's work is known."""

    busy: dict[str, float]
    waits: dict[str, float]
    overlap_s: float | None
    idle_s: float | None
    outside_s: float | None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a pass should take: seconds of work by tier and by what no tier causes (`terms`), and of it all (`seconds`),
    which is less than their sum where tiers work side by side."""

    terms: dict[str, float]
    seconds: float

    @property
    def overlap_s(self) -> float:
        return sum(self.terms.values()) - self.seconds

    @property
    def bottleneck(self) -> str:
        """The term that takes longest."""
        return max(self.terms, key=lambda term: self.terms[term])


def in_turn(terms: dict[str, float]) -> Prediction:
    """One thing after the other: the sum."""
    return Prediction(terms=terms, seconds=sum(terms.values()))


@dataclass(frozen=True, kw_only=True)
class HostWork:
    """What a host of experts did in a layer. host: its number, from 1 on; experts: how many of its RAM it read; pairs:
    choices that they served; there, back: bytes on the wire; pieces: of its answer."""

    host: int
    experts: int
    pairs: int
    there: int
    back: int
    pieces: int


@dataclass(frozen=True, kw_only=True)
class LayerWork:
    """What a layer's experts were to the tiers in one pass. bytes: read and sent, by tier and group. pairs: by memory,
    choices of tokens that its experts served. copied: bytes of experts that went from RAM to the main device, part of
    its bytes; is_streamed: all chosen ones of RAM did, as with many tokens. behind: bytes that went there for nobody in
    particular, behind the layer's work. hosts: what other machines did."""

    layer: int
    tokens: int
    bytes: Bytes
    pairs: dict[str, int]
    copied: int = 0
    is_streamed: bool = False
    behind: int = 0
    hosts: tuple[HostWork, ...] = ()


@dataclass(kw_only=True)
class Pass:
    """One forward pass: `tokens` new tokens of the given sequences; context is the sum of tokens in their caches.
    forced: of those tokens, how many a grammar left no choice in; each saved its sequence a pass. drafted: how many
    were guesses, of which `accepted` came true and saved a pass too. again: how many had been computed before, in a
    pass whose draft was refused. guesses: of models for its drafts, which are in no other figure of it."""

    index: int
    phase: str  # "prefill", "decode", or "mixed": prompts beside sequences that generate
    sequences: list[int]
    tokens: int
    context: int
    forced: int = 0
    drafted: int = 0
    accepted: int = 0
    again: int = 0
    guesses: Guesses = guesses.NONE
    bytes: Bytes = field(default_factory=dict)
    layers: list[LayerWork] = field(default_factory=list)  # where experts have several tiers, or stay on a disk
    by_layer: tuple[int, ...] = ()  # else bytes of each layer's experts, of those that were read in one call
    expect: Callable[[Pass], Prediction | None] | None = None  # says `predicted`
    measured_s: float = 0.0
    times: Times | None = None

    @cached_property
    def predicted(self) -> Prediction | None:
        """Seconds by tier, of what no tier causes, and of all; None: not known. Worked out when somebody asks, so
        that no step waits for it."""
        return None if self.expect is None else self.expect(self)

    @property
    def gained(self) -> int:
        """Tokens that sequences came on by: those of the pass without refused drafts, and none twice."""
        return self.tokens - (self.drafted - self.accepted) - self.again

    def total(self, tier: str) -> int:
        return sum(self.bytes.get(tier, {}).values())

    @property
    def predicted_s(self) -> float | None:
        return None if self.predicted is None else self.predicted.seconds

    @property
    def residual_s(self) -> float | None:
        """Measured less predicted time: what the bandwidth model does not explain."""
        return None if self.predicted_s is None else self.measured_s - self.predicted_s

    def as_json(self) -> dict[str, Any]:
        """One line of a ledger file; times in milliseconds."""
        return {
            "index": self.index,
            "phase": self.phase,
            "sequences": self.sequences,
            "tokens": self.tokens,
            "context": self.context,
            **({"forced": self.forced} if self.forced else {}),
            **({"drafted": self.drafted, "accepted": self.accepted} if self.drafted else {}),
            **({"again": self.again} if self.again else {}),
            **(self.guesses.as_json() if self.guesses.passes else {}),
            "bytes": {tier: {**groups, "total": self.total(tier)} for tier, groups in self.bytes.items()},
            "predicted_ms": ms(self.predicted_s),
            "measured_ms": ms(self.measured_s),
            "residual_ms": ms(self.residual_s),
            "predicted_time_ms": None if self.predicted is None else all_ms(self.predicted.terms),
            "predicted_overlap_ms": None if self.predicted is None else ms(self.predicted.overlap_s),
            **({} if self.times is None else self._times_json(self.times)),
        }

    def _times_json(self, times: Times) -> dict[str, Any]:
        return {
            "time_ms": all_ms(times.busy),
            "wait_ms": all_ms(times.waits),
            "overlap_ms": ms(times.overlap_s),
            "idle_ms": ms(times.idle_s),
            "outside_ms": ms(times.outside_s),
        }


def ms(seconds: float | None) -> float | None:
    """Milliseconds as a file has them."""
    return None if seconds is None else round(seconds * 1e3, 4)


def all_ms(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(s * 1e3, 4) for name, s in seconds.items()}


def add_up(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Sums by name."""
    sums: dict[str, float] = {}
    for part in parts:
        for name, seconds in part.items():
            sums[name] = sums.get(name, 0.0) + seconds
    return sums


def add_bytes(sums: Bytes, more: Mapping[str, Mapping[str, int]]) -> None:
    """Adds bytes to sums by tier and group."""
    for tier, groups in more.items():
        for group, size in groups.items():
            if size:
                there = sums.setdefault(tier, {})
                there[group] = there.get(group, 0) + size
