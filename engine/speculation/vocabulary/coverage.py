"""Which tokens a text has: the share of them that a guess could say which chooses among the first so many.

A language or a kind of text has tokens of its own, so each text is counted for itself, newer tokens counting more;
what is known of texts in general counts as a few tokens. Knows ids, no model.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence as Seq
from itertools import accumulate

PRIOR = 32.0  # tokens that what is known of texts in general counts as
MOST = 512  # tokens of a prompt that are looked at, and tokens after which those before count half


class Coverage:
    """Of one text. sizes: of the vocabularies, fewest tokens first; shares: of texts in general; others: ids that can
    be said whatever the vocabulary."""

    def __init__(self, sizes: Seq[int], shares: Seq[float], others: range) -> None:
        self.sizes, self.others = sizes, others
        self.counts = [PRIOR * (now - before) for before, now in zip((0.0, *shares), shares, strict=False)]
        self.fresh = self.until = 0

    def take_in(self, tokens: Seq[int]) -> None:
        """Counts the tokens of the text that came since."""
        for token in tokens[max(self.until, len(tokens) - MOST) :]:
            self.counts[0 if token in self.others else bisect_right(self.sizes, token)] += 1
            self.fresh += 1
            if self.fresh == MOST:
                self.counts, self.fresh = [one / 2 for one in self.counts], 0
        self.until = len(tokens)

    def shares(self) -> list[float]:
        """By vocabulary the share of tokens that it has."""
        return [one / sum(self.counts) for one in accumulate(self.counts)]
