"""What guesses tokens: one small protocol, whatever is behind it.

A drafter sees the tokens of a sequence, and says which may come next. It never decides: what it says is verified by the
model (`verify.py`), so a bad guess costs time and changes no token. Knows tokens, no pages and no schedule.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Literal, Protocol

from ..generation.sequence import Sequence
from ..ledger.guesses import Guesses
from .vocabulary.draft_vocabulary import DraftVocabulary

MODEL_KIND = "model"  # of guesses that take a model
MTP_KIND = "mtp"  # of a model's own layer for multi-token prediction
MOST_DRAFT = 8  # tokens; kernels are measured for up to as many beside another


@dataclass(frozen=True)
class Draft:
    """Tokens that may come next, and what kind of guess it is: guesses of one kind are accepted about as often.
    left_out: tokens that it could not have."""

    tokens: list[int]
    kind: str
    left_out: range = range(0)


class Drafter(Protocol):
    """Guesses that cost nothing beside a pass, so that one is made for every token."""

    is_free: Literal[True]
    token_s: float

    def draft(self, sequence: Sequence, most: int) -> Draft | None:
        """Up to `most` tokens, at least one, that may follow those of a sequence; None: no guess."""

    def forget(self, sequence: Sequence) -> None:
        """A sequence has ended: its text may serve for others, what is known of it alone goes."""


class CostlyDrafter(Protocol):
    """Guesses that take a model, all of one kind: it is asked only where a draft is expected to pay. vocabulary: among
    how many tokens it chooses, and the seconds of each token by that. made: what its guesses read."""

    is_free: Literal[False]
    kind: str
    vocabulary: DraftVocabulary
    made: Guesses

    def draft_all(self, asked: Seq[tuple[Sequence, int]]) -> list[Draft | None]:
        """Of each sequence up to so many tokens, at least one; None: no guess."""

    def forget(self, sequence: Sequence) -> None:
        """As of a `Drafter`."""
