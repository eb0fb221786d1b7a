"""One forward pass as the scheduler decides on it: whose next tokens go through the model, and how many."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..sequence import Sequence

PREFILL, MIXED, DECODE = "prefill", "mixed", "decode"


@dataclass(frozen=True)
class Batch:
    """For each sequence, how many of its next tokens go through the model. The first `decoding` of them generate: they
    have one new token each, and those that a grammar forces behind it. The others are prompts, or what has to be
    computed again."""

    sequences: list[Sequence]
    counts: list[int]
    decoding: int = 0

    @property
    def phase(self) -> str:
        """What the ledger calls it: decode, prefill, or mixed, where prompts and generating sequences share a pass."""
        if self.decoding == len(self.sequences):
            return DECODE
        return MIXED if self.decoding else PREFILL

    @property
    def tokens(self) -> int:
        return sum(self.counts)

    @property
    def generated(self) -> int:
        """Tokens of those that generate, which are the first of the pass."""
        return sum(self.counts[: self.decoding])

    @property
    def forced(self) -> int:
        """Those of them that need no pass of their own."""
        return self.generated - self.decoding

    @property
    def contexts(self) -> list[int]:
        """Tokens in the cache after the pass, by sequence."""
        return [s.computed + n for s, n in zip(self.sequences, self.counts, strict=True)]

    @cached_property
    def ready(self) -> list[int]:
        """Indices of the sequences whose last token is in this pass, so that a new one can be sampled after it."""
        return [i for i, context in enumerate(self.contexts) if context == len(self.sequences[i].tokens)]
