"""What guesses tokens: one small protocol, whatever is behind it.

A drafter sees the tokens of a sequence, and says which may come next. It never decides: what it says is verified by the
model (`verify.py`), so a bad guess costs time and changes no token. Knows tokens, no pages and no schedule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..generation.sequence import Sequence

MODEL_KIND = "model"  # of guesses that take a model
MOST_DRAFT = 8  # tokens; kernels are measured for up to as many beside another


@dataclass(frozen=True)
class Draft:
    """Tokens that may come next, and what kind of guess it is: guesses of one kind are accepted about as often."""

    tokens: list[int]
    kind: str


class Drafter(Protocol):
    """Guesses. is_free: a guess costs nothing beside a pass, so that one may be made for every token; else it is asked
    only where a draft is expected to pay, and `token_s` are the seconds that each token of one takes."""

    is_free: bool
    token_s: float

    def draft(self, sequence: Sequence, most: int) -> Draft | None:
        """Up to `most` tokens, at least one, that may follow those of a sequence; None: no guess."""

    def forget(self, sequence: Sequence) -> None:
        """A sequence has ended: its text may serve for others, what is known of it alone goes."""
