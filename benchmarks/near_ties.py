"""Why two engines chose another token after the same ones: whether the two tokens were as good as equal there.

Pure: ids and logits in, verdicts out. An engine that rounds activations to 8 bits moves the lead of one token over
another, which is measured where exact arithmetic sees the same text: `lead_moves`. A first difference is a near tie if
no lead there, of our engine, of theirs, or in exact arithmetic, is larger than the largest move of llama.cpp's leads.
Ours is no measure of itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Difference:
    """The first place where two texts differ. lead_*: by how many logits our token is before theirs, in our engine, in
    theirs (negative), and in exact arithmetic."""

    prompt: int
    place: int
    ours: int
    theirs: int
    lead_ours: float
    lead_theirs: float
    lead_exact: float = 0.0

    def is_near_tie(self, noise: float) -> bool:
        """Whether all leads are small: a large one in one engine alone is an error of that engine."""
        return max(abs(self.lead_ours), abs(self.lead_theirs), abs(self.lead_exact)) <= noise

    def line(self, noise: float) -> str:
        """As it is printed."""
        verdict = "near tie" if self.is_near_tie(noise) else "NOT EXPLAINED"
        return (
            f"prompt {self.prompt:2}, token {self.place:2}: ours {self.ours}, theirs {self.theirs}; lead of ours "
            f"{self.lead_ours:+.3f} here, {self.lead_theirs:+.3f} there, {self.lead_exact:+.3f} exact; noise "
            f"{noise:.3f}: {verdict}"
        )


def first_difference(
    prompt: int, ours: Sequence[int], our_logits: Logits, theirs: Sequence[int], their_logits: Logits
) -> Difference | None:
    """Where two greedy texts part; logits [tokens, vocabulary] are those that each token was chosen from. None: they
    are the same."""
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), None)
    if place is None:
        return None
    a, b = ours[place], theirs[place]
    return Difference(prompt, place, a, b, lead(our_logits[place], a, b), lead(their_logits[place], a, b))


def lead(logits: Logits, a: int, b: int) -> float:
    """By how much token a is before token b."""
    return float(logits[a]) - float(logits[b])


def lead_moves(exact: Logits, rounded: Logits) -> NDArray[np.float64]:
    """By how much rounding moves the lead of the best token over the second, for each row."""
    best = np.argsort(exact, axis=-1)[:, -2:]
    rows = np.arange(len(exact))
    leads = [many[rows, best[:, 1]].astype(np.float64) - many[rows, best[:, 0]] for many in (exact, rounded)]
    return np.abs(leads[0] - leads[1])


def spread(moves: NDArray[np.float64]) -> dict[str, float]:
    """Moves in three numbers."""
    return {
        "median": round(float(np.median(moves)), 4),
        "of_99_percent": round(float(np.percentile(moves, 99)), 4),
        "largest": round(float(moves.max()), 4),
    }


def compared(reference: Logits, other: Logits) -> dict[str, Any]:
    """How far logits [tokens, vocabulary] are from a reference: of the whole, the largest of a row in the median and
    at most, and in which share of rows the best token is the same."""
    off = np.abs(other.astype(np.float64) - reference)
    return {
        "relative": float(f"{np.linalg.norm(off) / np.linalg.norm(reference.astype(np.float64)):.3g}"),
        "median_row": float(f"{np.median(off.max(-1)):.3g}"),
        "largest": float(f"{off.max():.3g}"),
        "same_best": round(float((reference.argmax(-1) == other.argmax(-1)).mean()), 4),
    }
