"""One forward pass as the scheduler decides on it: whose next tokens go through the model, and how many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from ..sequence import Sequence

PREFILL, MIXED, DECODE = "prefill", "mixed", "decode"


@dataclass(frozen=True)
class Batch:
    """For each sequence, how many of its next tokens go through the model. The first `decoding` of them generate: they
    have one new token each, those that a grammar forces behind it, and behind these a draft, by number of the
    sequence. The others are prompts, or what has to be computed again. again: tokens of those that generate that
    were computed before, in a pass whose draft was refused."""

    sequences: list[Sequence]
    counts: list[int]
    decoding: int = 0
    drafts: Mapping[int, list[int]] = field(default_factory=dict)
    again: int = 0

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
        return self.generated - self.decoding - self.drafted - self.again

    @property
    def drafted(self) -> int:
        """Tokens of drafts."""
        return sum(map(len, self.drafts.values()))

    @property
    def is_plain_decode(self) -> bool:
        """Whether it is one token of each that generates, and nothing else."""
        return self.phase == DECODE and self.generated == self.decoding

    def tokens_of(self, number: int) -> list[int]:
        """A sequence's tokens, its draft included."""
        sequence = self.sequences[number]
        return sequence.tokens + self.drafts[number] if number in self.drafts else sequence.tokens

    def rows_of(self, number: int) -> int:
        """How many logits of a sequence that is ready are wanted: behind its last token, and behind each of its
        draft."""
        return 1 + len(self.drafts.get(number, ()))

    @property
    def contexts(self) -> list[int]:
        """Tokens in the cache after the pass, by sequence."""
        return [s.computed + n for s, n in zip(self.sequences, self.counts, strict=True)]

    @cached_property
    def ready(self) -> list[int]:
        """Indices of the sequences whose last token is in this pass, so that a new one can be sampled after it."""
        longest = [len(s.tokens) + len(self.drafts.get(i, ())) for i, s in enumerate(self.sequences)]
        return [i for i, context in enumerate(self.contexts) if context == longest[i]]
