"""The ledger: for every forward pass the bytes read per tier, the time they should have taken, the time they took.

Bytes are not measured by counters in kernels. They follow exactly from what was chosen: distinct experts times the size
of an expert, matrices that every pass reads, tokens in the cache. So they are cheap to know, and for a given routing
a prediction from the model alone is right to the byte. Each byte counts once per pass: what has to cross the memory
bus at least. With one sequence a decode pass is one token, and a line of the ledger is a line per token.

Times are of a pass as a whole, and of each tier's work in it (`timers.py`); both have a prediction beside them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any

from ...errors import OptionError

Bytes = dict[str, dict[str, int]]  # tier -> group -> bytes
# Memories that are read, and links that are crossed: host to device, back, and from GPU to GPU.
CPU_DRAM, GPU_HBM, GPU1_HBM = "cpu_dram", "gpu_hbm", "gpu1_hbm"
H2D, D2H, D2D = "h2d", "d2h", "d2d"
MEMORIES = (GPU_HBM, GPU1_HBM, CPU_DRAM)
CHANNELS = (*MEMORIES, H2D, D2H, D2D)


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


def in_turn(terms: dict[str, float]) -> Prediction:
    """One thing after the other: the sum."""
    return Prediction(terms=terms, seconds=sum(terms.values()))


@dataclass(frozen=True, kw_only=True)
class LayerWork:
    """What a layer's experts were to the tiers in one pass. bytes: read and sent, by tier and group. pairs: by memory,
    choices of tokens that its experts served. copied: bytes of experts that went from RAM to the home device, part of
    its bytes; is_streamed: all chosen ones of RAM did, as with many tokens."""

    layer: int
    tokens: int
    bytes: Bytes
    pairs: dict[str, int]
    copied: int = 0
    is_streamed: bool = False


@dataclass(kw_only=True)
class Pass:
    """One forward pass: `tokens` new tokens of the given sequences; context is the sum of tokens in their caches."""

    index: int
    phase: str  # "prefill" or "decode"
    sequences: list[int]
    tokens: int
    context: int
    bytes: Bytes = field(default_factory=dict)
    layers: list[LayerWork] = field(default_factory=list)  # where experts have several tiers
    expect: Callable[[], Prediction | None] | None = None  # says `predicted`
    measured_s: float = 0.0
    times: Times | None = None

    @cached_property
    def predicted(self) -> Prediction | None:
        """Seconds by tier, of what no tier causes, and of all; None: not known. Worked out when somebody asks, so
        that no step waits for it."""
        return None if self.expect is None else self.expect()

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


class Ledger:
    """Books passes. `predict` says what a pass should take, or is None where no bandwidth is known; `watch` sees every
    pass when it is done. `later` is called before a pass is closed: for bytes that are known only when what a device
    was told to do is done."""

    def __init__(self, predict: Callable[[Pass], Prediction | None] | None = None) -> None:
        self.predict = predict
        self.watch: Callable[[Pass], None] | None = None
        self.passes: list[Pass] = []
        self.current: Pass | None = None
        self.later: Callable[[], None] | None = None
        self.sink: IO[str] | None = None

    def open(self, path: Path, mode: str = "w") -> None:
        """Writes a JSON line for every pass from now on; raises OptionError if the file cannot be written."""
        try:
            self.sink = Path(path).open(mode, encoding="utf-8")  # noqa: SIM115  # closed by close()
        except OSError as error:
            raise OptionError(f"cannot write the ledger to {path}: {error.strerror}; choose another path") from error

    @staticmethod
    def check_path(path: Path) -> None:
        """Raises OptionError if a ledger cannot be written there: before a model is loaded, not after. What the file
        holds stays."""
        ledger = Ledger()
        ledger.open(path, mode="a")
        ledger.close()

    def close(self) -> None:
        if self.sink is not None:
            self.sink.close()
            self.sink = None

    def begin(self, phase: str, sequences: list[int], tokens: int, context: int) -> None:
        """Opens a pass; what is read from now on belongs to it."""
        self.later = None
        self.current = Pass(index=len(self.passes), phase=phase, sequences=sequences, tokens=tokens, context=context)

    def read(self, tier: str, group: str, size: int) -> None:
        """Books bytes that the current pass reads (outside of a pass: nothing to book)."""
        if self.current is not None and size:
            groups = self.current.bytes.setdefault(tier, {})
            groups[group] = groups.get(group, 0) + size

    def work(self, work: LayerWork) -> None:
        """Books a layer's experts on several tiers."""
        if self.current is None:
            return
        for tier, groups in work.bytes.items():
            for group, size in groups.items():
                self.read(tier, group, size)
        self.current.layers.append(work)

    def end(self, seconds: float, times: Times | None = None) -> Pass:
        """Closes the pass with the time it took, and what that went to."""
        later, self.later = self.later, None
        if later is not None:
            later()
        done = self.current
        assert done is not None, "end of a pass that was not begun"
        self.current = None
        done.measured_s, done.times = seconds, times
        if self.predict is not None:
            done.expect = partial(self.predict, done)
        self.passes.append(done)
        if self.watch is not None:
            self.watch(done)
        if self.sink is not None:
            self._write(done)
        return done

    def _write(self, done: Pass) -> None:
        assert self.sink is not None
        try:
            self.sink.write(json.dumps(done.as_json()) + "\n")
            self.sink.flush()
        except OSError as error:
            path, self.sink = self.sink.name, None
            raise OptionError(f"the ledger {path} cannot be written any more: {error.strerror}; make room") from error


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Sums over the passes of one phase. Rates are tokens per second; bytes and times are per token."""

    phase: str
    passes: int
    tokens: int
    measured_s: float
    predicted: Prediction | None
    bytes: Bytes
    times: Times | None

    @property
    def predicted_s(self) -> float | None:
        return None if self.predicted is None else self.predicted.seconds

    @property
    def tok_s(self) -> float:
        return self.tokens / self.measured_s if self.measured_s else 0.0

    @property
    def predicted_tok_s(self) -> float | None:
        return self.tokens / self.predicted_s if self.predicted_s else None

    @property
    def residual_ms(self) -> float | None:
        """Milliseconds per token that the model does not explain."""
        if self.predicted_s is None or not self.tokens:
            return None
        return (self.measured_s - self.predicted_s) * 1e3 / self.tokens

    def bytes_per_token(self) -> Bytes:
        """Mean bytes per token by tier and group, and their total."""
        out: Bytes = {}
        for tier, groups in self.bytes.items():
            out[tier] = {group: round(size / max(1, self.tokens)) for group, size in groups.items()}
            out[tier]["total"] = round(sum(groups.values()) / max(1, self.tokens))
        return out


def summarise(passes: list[Pass], phase: str) -> Summary:
    """Adds up the passes of one phase."""
    chosen = [p for p in passes if p.phase == phase]
    sums: Bytes = {}
    for one in chosen:
        for tier, groups in one.bytes.items():
            for group, size in groups.items():
                sums.setdefault(tier, {})[group] = sums.get(tier, {}).get(group, 0) + size
    return Summary(
        phase=phase,
        passes=len(chosen),
        tokens=sum(p.tokens for p in chosen),
        measured_s=sum(p.measured_s for p in chosen),
        predicted=_all_predictions([p.predicted for p in chosen]),
        bytes=sums,
        times=_all_times([p.times for p in chosen]),
    )


def _all_predictions(each: list[Prediction | None]) -> Prediction | None:
    """Their sum; None where one is missing."""
    known = [one for one in each if one is not None]
    if not known or len(known) < len(each):
        return None
    return Prediction(terms=add_up(one.terms for one in known), seconds=sum(one.seconds for one in known))


def _all_times(each: list[Times | None]) -> Times | None:
    """Their sum; what one of them does not know is not known."""
    known = [one for one in each if one is not None]
    if not known or len(known) < len(each):
        return None

    def total(parts: list[float | None]) -> float | None:
        return None if None in parts else sum(part for part in parts if part is not None)

    return Times(
        busy=add_up(one.busy for one in known),
        waits=add_up(one.waits for one in known),
        overlap_s=total([one.overlap_s for one in known]),
        idle_s=total([one.idle_s for one in known]),
        outside_s=total([one.outside_s for one in known]),
    )


def add_up(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Sums by name."""
    sums: dict[str, float] = {}
    for part in parts:
        for name, seconds in part.items():
            sums[name] = sums.get(name, 0.0) + seconds
    return sums
