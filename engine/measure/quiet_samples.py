"""How fast the cores run right now, so that what was measured in a slow moment can be told from the rest.

A core of a guest shares its execution units with whoever runs on its other thread. Nothing accounts for that: no time
is stolen, and memory and arithmetic alike take a quarter longer, for seconds at a time. A millisecond of one kernel on
weights that the L2 caches hold shows it. A sample counts when the pace before and after it was that of an undisturbed
machine: at most `SLACK` times the best.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from ... import kernels
from ...kernels import FORMATS
from ...kernels.context import Context
from ...kernels.packed import Matrix

ROWS, COLS, TOKENS = 256, 2048, 4  # of a thread: 0.3 MB of weights
CALLS = 24
SLACK = 1.12
ALIKE = 0.06  # of a pace: as near as that counts as the same
LEAST = 5  # samples


class Sample(NamedTuple):
    """A value, and the slower of the paces before and after it."""

    value: float
    pace_s: float


class Pace:
    """Call it for the seconds that the same work takes now; `last_s` is what it took the time before."""

    def __init__(self, context: Context) -> None:
        self.ops = kernels.load("cpu", context)
        format, rows = FORMATS["q4_0"], ROWS * context.threads
        data = torch.full((rows, format.row_bytes(COLS)), 0x11, dtype=torch.uint8)
        self.matrix = Matrix(format, rows, COLS, data)
        self.x_TC = torch.ones(TOKENS, COLS)
        for _ in range(3):
            self.last_s = self()

    def __call__(self) -> float:
        start = time.perf_counter()
        for _ in range(CALLS):
            self.ops.linear(self.x_TC, self.matrix)
        self.last_s = time.perf_counter() - start
        return self.last_s

    def since_before(self) -> float:
        """The slower of the pace now and the pace before."""
        return max(self.last_s, self())


def best(paces: list[float]) -> float:
    """The pace of an undisturbed machine: a low one, and not the lowest, which may be an accident."""
    return sorted(paces)[len(paces) // 20]


def steady(samples: list[Sample], best_s: float) -> list[float]:
    """Values that were taken undisturbed; of the `LEAST` least disturbed samples where there are fewer."""
    kept = [s.value for s in samples if s.pace_s <= SLACK * best_s]
    if len(kept) >= LEAST:
        return kept
    return [s.value for s in sorted(samples, key=lambda s: s.pace_s)[:LEAST]]


def is_alike(pace_s: float, wanted_s: float) -> bool:
    """Whether a sample was taken at this pace."""
    return abs(pace_s / wanted_s - 1) <= ALIKE


def alike(samples: list[Sample], wanted_s: float) -> list[float]:
    """Values that were taken at this pace; of the `LEAST` nearest to it where there are fewer."""
    kept = [s.value for s in samples if is_alike(s.pace_s, wanted_s)]
    if len(kept) >= LEAST:
        return kept
    return [s.value for s in sorted(samples, key=lambda s: abs(s.pace_s / wanted_s - 1))[:LEAST]]


def share(paces: list[float], best_s: float) -> float:
    """How many of them were undisturbed."""
    return sum(p <= SLACK * best_s for p in paces) / max(1, len(paces))
