"""The ledger: for every forward pass the bytes read per tier, the time they should have taken, the time they took.

Bytes are not measured by counters in kernels. They follow exactly from what was chosen: distinct experts times the size
of an expert, matrices that every pass reads, tokens in the cache. So they are cheap to know, and for a given routing
they equal the prediction to the byte (`planner.py`). Each byte counts once per pass: what has to cross the memory bus
at least. With one sequence a decode pass is one token, and a line of the ledger is a line per token.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any

from ..errors import OptionError

Bytes = dict[str, dict[str, int]]  # tier -> group -> bytes
# Memories that are read, and links that are crossed: host to device, back, and from GPU to GPU.
CPU_DRAM, GPU_HBM, GPU1_HBM = "cpu_dram", "gpu_hbm", "gpu1_hbm"
H2D, D2H, D2D = "h2d", "d2h", "d2d"
MEMORIES = (GPU_HBM, GPU1_HBM, CPU_DRAM)
CHANNELS = (*MEMORIES, H2D, D2H, D2D)


@dataclass(kw_only=True)
class Pass:
    """One forward pass: `tokens` new tokens of the given sequences; context is the sum of tokens in their caches."""

    index: int
    phase: str  # "prefill" or "decode"
    sequences: list[int]
    tokens: int
    context: int
    bytes: Bytes = field(default_factory=dict)
    expect: Callable[[], dict[str, float]] | None = None  # says `predicted`
    measured_s: float = 0.0

    @cached_property
    def predicted(self) -> dict[str, float] | None:
        """Seconds by tier, and what no tier causes; None: not known. Worked out when somebody asks, so that no step
        waits for it."""
        return None if self.expect is None else self.expect()

    def total(self, tier: str) -> int:
        return sum(self.bytes.get(tier, {}).values())

    @property
    def predicted_s(self) -> float | None:
        return None if self.predicted is None else sum(self.predicted.values())

    @property
    def residual_s(self) -> float | None:
        """Measured less predicted time: what the bandwidth model does not explain."""
        return None if self.predicted_s is None else self.measured_s - self.predicted_s

    def as_json(self) -> dict[str, Any]:
        """One line of a ledger file; times in milliseconds."""

        def ms(seconds: float | None) -> float | None:
            return None if seconds is None else round(seconds * 1e3, 4)

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
        }


class Ledger:
    """Books passes. `predict` turns bytes, tokens and sequences of a pass into seconds by tier, or is None where no
    bandwidth is known; `watch` sees every pass when it is done. `later` is called before a pass is closed: for bytes
    that are known only when what a device was told to do is done."""

    def __init__(self, predict: Callable[[Bytes, int, int], dict[str, float]] | None = None) -> None:
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

    def end(self, seconds: float) -> Pass:
        """Closes the pass with the time it took."""
        later, self.later = self.later, None
        if later is not None:
            later()
        done = self.current
        assert done is not None, "end of a pass that was not begun"
        self.current = None
        done.measured_s = seconds
        if self.predict is not None:
            done.expect = partial(self.predict, done.bytes, done.tokens, len(done.sequences))
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
    predicted_s: float | None
    bytes: Bytes

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
    predicted = [p.predicted_s for p in chosen]
    return Summary(
        phase=phase,
        passes=len(chosen),
        tokens=sum(p.tokens for p in chosen),
        measured_s=sum(p.measured_s for p in chosen),
        predicted_s=None if None in predicted or not chosen else sum(p for p in predicted if p is not None),
        bytes=sums,
    )
