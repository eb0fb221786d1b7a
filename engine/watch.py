"""Watches a run: says once when what it takes and what was predicted drift apart, and which tier is behind it.

Decode passes are added up until they hold `WINDOW` tokens, then the sums are compared and it starts anew. The tier that
is named is the one that was predicted to take most of the time: a run knows how long a pass took, not how long each
tier did.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from .ledger import Pass
from .planner import FIXED

WINDOW = 32  # tokens
TOLERANCE = 0.2  # of the predicted time


class Watch:
    """Sees every pass of a ledger (`Ledger.watch`) and tells at most once."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.told = False
        self._clear()

    def _clear(self) -> None:
        self.seen: list[Pass] = []
        self.tokens, self.measured = 0, 0.0
        self.predicted: defaultdict[str, float] = defaultdict(float)
        self.bytes: defaultdict[str, int] = defaultdict(int)

    def __call__(self, done: Pass) -> None:
        """Takes note of a pass; what it should have taken is asked when there are enough of them."""
        if self.told or done.phase != "decode" or done.expect is None:
            return
        self.seen.append(done)
        self.tokens += done.tokens
        if self.tokens >= WINDOW:
            self._compare()
            self._clear()

    def _add(self, done: Pass) -> None:
        self.measured += done.measured_s
        for term, seconds in (done.predicted or {}).items():
            self.predicted[term] += seconds
        for tier in done.bytes:
            self.bytes[tier] += done.total(tier)

    def _compare(self) -> None:
        for done in self.seen:
            self._add(done)
        expected = sum(self.predicted.values())
        if expected > 0 and abs(self.measured / expected - 1) > TOLERANCE:
            self.told = True
            self.tell(self._line(expected))

    def _line(self, expected: float) -> str:
        took = f"{self.measured / self.tokens * 1e3:.2f} ms a token, predicted {expected / self.tokens * 1e3:.2f}"
        if self.measured < expected:
            return f"faster than predicted: {took}. The profile of this machine is out of date: headrace measure"
        term = max(self.predicted, key=lambda name: self.predicted[name])
        if term == FIXED:
            return f"slower than predicted: {took}; most of it is calls and hand-offs, no tier: see headrace doctor"
        rest = expected - self.predicted[term]
        rate = self.bytes[term] / max(self.measured - rest, 1e-9) / 1e9
        known = self.bytes[term] / self.predicted[term] / 1e9
        return f"slower than predicted: {took}; {term} gives {rate:.1f} of {known:.1f} GB/s: see headrace doctor"
