"""What passes with drafts should take: as the bandwidth model says, corrected by what passes of that size took.

Tokens of a draft follow each other and choose more alike than any two tokens: of the experts that uniform routing would
add to those of one token, a share is read, and that share is taken from the last passes. Their seconds correct what is
predicted, for each number of tokens; a number that was not seen yet is corrected as the nearest one that was. Of passes
whose experts do not all lie in RAM, what they took is all that is known (`seen_times.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..planning.articles import distinct_experts
from .seen_times import SeenTimes

NEWEST = 0.2  # weight of the newest pass
STEADY = 0.1
MOST_OFF = 2.0  # times what is known, which a pass counts as at most: it was held up by others


class Predicted(Protocol):
    """The bandwidth model; None: not known."""

    def drafted(self, sequences: int, drafted: int, context: int, share: float) -> float | None:
        """Seconds of a pass of so many sequences with a token each and `drafted` ones more, all with so long a context,
        that reads this share of the experts."""

    @property
    def expert_bytes(self) -> int:
        """Of all experts that a pass may read."""


class PassTimes:
    """Of one model with so many experts, of which a token takes top_k."""

    def __init__(self, predicted: Predicted, experts: int, top_k: int) -> None:
        self.predicted, self.experts, self.top_k = predicted, experts, top_k
        self.added = 1.0  # of the experts that uniform routing adds, the share that passes of several tokens read
        self.steady = 1.0  # the same, within a tenth: what was predicted with it once is known
        self.corrections: dict[int, float] = {}
        self.seen = SeenTimes()

    def are_known(self, sequences: int, context: int) -> bool:
        """Whether seconds of such passes are predicted."""
        return self.predicted.drafted(sequences, 0, context, self.share(sequences)) is not None

    def share(self, tokens: int) -> float:
        """Of the experts, what a pass of so many tokens should read."""
        if abs(self.added - self.steady) > STEADY * self.steady:
            self.steady = self.added
        one = self.top_k / self.experts
        more = distinct_experts(self.experts, self.top_k, tokens) / self.experts - one
        return min(1.0, one + self.steady * more)

    def of(self, sequences: int, context: int) -> Callable[[int], float | None]:
        """Seconds of a pass with so many drafted tokens: predicted, or, of experts elsewhere, as such passes took."""

        def seconds(drafted: int) -> float | None:
            tokens = sequences + drafted
            expected = self.predicted.drafted(sequences, drafted, context, self.share(tokens))
            return self.seen.of(tokens) if expected is None else expected * self._correction(tokens)

        return seconds

    def saw(self, sequences: int, drafted: int, context: int, seconds: float, read: int) -> None:
        """Takes in what a pass of decoding took, and how many bytes of experts it read."""
        tokens = sequences + drafted
        if not self.predicted.expert_bytes:
            self.seen.saw(tokens, seconds)
            return
        share = min(1.0, read / self.predicted.expert_bytes)
        expected = self.predicted.drafted(sequences, drafted, context, share)
        if tokens > 1 and (uniform := self._uniform(tokens)) > 0:
            added = min(1.0, max(0.0, share - self.top_k / self.experts) / uniform)
            self.added += NEWEST * (added - self.added)
        if expected:
            before = self.corrections.get(tokens, seconds / expected)
            now = min(seconds / expected, MOST_OFF * before)
            self.corrections[tokens] = before + NEWEST * (now - before)

    def _uniform(self, tokens: int) -> float:
        return (distinct_experts(self.experts, self.top_k, tokens) - self.top_k) / self.experts

    def _correction(self, tokens: int) -> float:
        if not self.corrections:
            return 1.0
        return self.corrections[min(self.corrections, key=lambda seen: (abs(seen - tokens), -seen))]
