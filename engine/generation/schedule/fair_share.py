"""How generating sequences keep their share while prompts are computed beside them.

    mixed pass   debt += share * its seconds
    decode pass  debt -= its seconds, down to 0

While there is a debt, passes without prompts come first. With a share of one half text goes on at about a third of the
speed it has alone, and prompts get two thirds of the time. Knows seconds, no sequences.
"""

from __future__ import annotations

from .batch import DECODE, MIXED

DECODE_SHARE = 0.5  # seconds of passes without prompts that follow a second with one


class FairShare:
    """The debt of prompts to those that generate. share: 0 lets prompts always go first."""

    def __init__(self, share: float = DECODE_SHARE) -> None:
        self.share = share
        self.debt_s = 0.0

    @property
    def owes_decode(self) -> bool:
        """Whether the next pass belongs to those that generate alone."""
        return self.debt_s > 0

    def booked(self, phase: str, seconds: float) -> None:
        """Takes in a pass that was run."""
        if phase == MIXED:
            self.debt_s += self.share * seconds
        elif phase == DECODE:
            self.debt_s = max(0.0, self.debt_s - seconds)
        else:
            self.debt_s = 0.0  # nobody generates: nobody is owed anything
