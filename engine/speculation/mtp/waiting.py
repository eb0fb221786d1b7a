"""Hidden states of one sequence that the layer for multi-token prediction has not taken in yet.

Taking them in one by one would read the layer for each; so they wait until a draft is wanted, or until there are many.
Knows rows and positions, no model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...generation.sequence import Sequence


class Waiting:
    """`mine` is the layer's own view of a sequence: its tokens without the first, so that position i has the embedding
    of token i + 1; `computed` says how many positions are in the layer's cache. Pages are those of the sequence."""

    def __init__(self, mine: Sequence, sequence: Sequence, first: int) -> None:
        self.mine, self.rows = mine, list[Tensor]()
        self.begin(sequence, first)

    def begin(self, sequence: Sequence, first: int) -> None:
        """From a position on, with the pages that the sequence has now: what is before it came from other sequences, or
        is of an earlier run."""
        self.mine.pages, self.mine.computed, self.mine.tokens = sequence.pages, first, sequence.tokens[1:]
        self.rows.clear()

    @property
    def end(self) -> int:
        """Positions that are in the cache or wait."""
        return self.mine.computed + self.waits

    @property
    def waits(self) -> int:
        return sum(len(one) for one in self.rows)

    def is_of(self, sequence: Sequence) -> bool:
        """Whether the sequence has the pages still: one that was put off gets others."""
        return self.mine.pages is sequence.pages

    def add(self, sequence: Sequence, start: int, hidden_TD: Tensor) -> None:
        """Takes in states of positions from `start` on; those that are known already are passed over."""
        if not self.is_of(sequence) or start > self.end:
            self.begin(sequence, start)
        if (known := self.end - start) < len(hidden_TD):
            self.rows.append(hidden_TD[known:].clone())
        self.mine.tokens[self.mine.computed :] = sequence.tokens[self.mine.computed + 1 :]

    def take(self) -> Tensor:
        """All that wait: float32 [rows, hidden]."""
        taken = torch.cat(self.rows)
        self.rows.clear()
        return taken
