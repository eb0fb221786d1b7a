"""Seconds between tokens, as a histogram has them: how many fell below each limit, and their sum."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

LIMITS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)  # seconds; behind them all others


class Gaps:
    """Of one answer, or of all that ended."""

    def __init__(self) -> None:
        self.counts = [0] * (len(LIMITS) + 1)
        self.seconds = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        """So many tokens, each so long behind the one before."""
        self.counts[bisect_left(LIMITS, seconds)] += count
        self.seconds += seconds * count

    def __iadd__(self, other: Gaps) -> Gaps:
        self.counts = [one + more for one, more in zip(self.counts, other.counts, strict=True)]
        self.seconds += other.seconds
        return self

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """By limit how many took no longer, as Prometheus has them."""
        names = [*map(str, LIMITS), "+Inf"]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))
