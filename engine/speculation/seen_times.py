"""What passes of so many tokens took, where nothing predicts it: beside a GPU, with experts on a disk or on hosts.

A size that was not seen lies between those that were; one above all of them counts as the largest, so that it is tried
once. What is known of a size fades while others run, so that it is tried again some day. Knows seconds, no model.
"""

from __future__ import annotations

from bisect import bisect_left

SLOWER, FASTER = 0.2, 0.5  # weight of the newest pass: what was held up by others counts less
MOST_OFF = 2.0  # times what is known, which a pass counts as at most
FADES = 0.999  # with every pass of another size


class SeenTimes:
    """By tokens of a pass."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}

    def saw(self, tokens: int, seconds: float) -> None:
        """Takes in a pass."""
        before = self.seconds.get(tokens, seconds)
        weight = FASTER if seconds < before else SLOWER
        now = before + weight * (min(seconds, MOST_OFF * before) - before)
        self.seconds = {size: took * FADES for size, took in self.seconds.items()} | {tokens: now}

    def of(self, tokens: int) -> float | None:
        """Of a pass of so many tokens; None where none was seen."""
        sizes = sorted(self.seconds)
        if not sizes:
            return None
        place = bisect_left(sizes, tokens)
        if place == len(sizes) or place == 0:
            return self.seconds[sizes[min(place, len(sizes) - 1)]]
        low, high = sizes[place - 1], sizes[place]
        share = (tokens - low) / (high - low)
        return self.seconds[low] + share * (self.seconds[high] - self.seconds[low])
