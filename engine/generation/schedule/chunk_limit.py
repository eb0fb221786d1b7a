"""How many tokens of prompts go into a pass while others generate: as many as its predicted seconds allow.

A chunk that reads every expert once takes as long as that, however few its tokens are: below it fewer tokens save
nothing. So the limit is the larger of `stall_s` and FULL_READ times such a pass. A prediction is corrected by what
passes took. Where there is none, the number grows by a quarter and is halved by what passes took alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ...model.kv_cache import PAGE

FULL_READ = 1.2
FIRST_GUESS = 64  # tokens, where nothing is known yet; most experts are read with so many
GROWTH = 1.25
NEWEST = 0.3  # weight of the newest pass in the correction


class ExpectedTime(Protocol):
    """Says what passes should take, in seconds; None: not known."""

    def seconds(self, tokens: int, rows: int, context: int) -> float | None:
        """Of a pass with so many tokens of prompts beside `rows` sequences that generate, all with so long a
        context."""

    def full_read(self) -> float | None:
        """Of a pass that reads every weight once, and computes nothing."""


class ChunkLimit:
    """Of one model. most: tokens of the largest chunk; stall_s: how long a prompt may hold up others; None: as long as
    its largest chunk takes."""

    def __init__(self, expected: ExpectedTime, most: int, stall_s: float | None) -> None:
        self.expected, self.most, self.stall_s = expected, most, stall_s
        self.correction = 1.0
        self.guess = FIRST_GUESS

    def tokens(self, rows: int, context: int) -> int:
        """Most tokens of prompts in the next pass, beside `rows` sequences that generate."""
        if self.stall_s is None:
            return self.most
        full = self.expected.full_read()
        if full is None:
            return min(self.guess, self.most)
        limit = max(self.stall_s, FULL_READ * full * self.correction)

        def fits(tokens: int) -> bool:
            seconds = self.expected.seconds(tokens, rows, context)
            return seconds is not None and seconds * self.correction <= limit

        return min(self.most, max(PAGE, PAGE * _largest(lambda pages: fits(PAGE * pages), -(-self.most // PAGE))))

    def saw(self, tokens: int, rows: int, context: int, seconds: float) -> None:
        """Takes in what a pass with prompts took."""
        if self.stall_s is None:
            return
        expected = self.expected.seconds(tokens, rows, context)
        if expected:
            self.correction += NEWEST * (seconds / expected - self.correction)
        elif seconds > self.stall_s:
            self.guess = max(PAGE, self.guess // 2)
        elif tokens >= self.guess and GROWTH * seconds < self.stall_s:
            self.guess = max(self.guess + PAGE, int(GROWTH * self.guess))


def _largest(holds: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` for which something holds that holds for all smaller ones; 0: for none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
