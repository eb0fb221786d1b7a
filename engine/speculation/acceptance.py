"""How often guesses come true: by kind of guess, of one sequence and of all before it, newer ones counting more.

A guess is a run of tokens; each token of it that was looked at, with all before it right, is a trial. A sequence begins
with what others had. Knows counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .drafter import MTP_KIND

FIRST = 0.5  # where nothing is known
FIRST_OF = {MTP_KIND: 0.8}  # a model's own layer was trained for it: a few drafts show what it is worth
WEIGHT = 4.0  # trials that what is known from elsewhere counts as
KEPT = 0.95  # of what was known, with every guess; the last 20 decide


@dataclass
class Record:
    """Trials and successes, each fading as new ones come."""

    right: float = 0.0
    trials: float = 0.0

    def add(self, right: int, trials: int) -> None:
        self.right = self.right * KEPT + right
        self.trials = self.trials * KEPT + trials

    def rate(self, prior: float) -> float:
        """The share that comes true, where `prior` is what to think before."""
        return (self.right + WEIGHT * prior) / (self.trials + WEIGHT)


@dataclass
class Acceptance:
    """Of one model and one drafter."""

    all: dict[str, Record] = field(default_factory=dict)
    each: dict[tuple[int, str], Record] = field(default_factory=dict)

    def rate(self, sequence: int, kind: str) -> float:
        """How likely a token of such a guess is right, those before it being so."""
        first = FIRST_OF.get(kind, FIRST)
        prior = self.all[kind].rate(first) if kind in self.all else first
        mine = self.each.get((sequence, kind))
        return prior if mine is None else mine.rate(prior)

    def saw(self, sequence: int, kind: str, drafted: int, right: int) -> None:
        """Takes in a guess of so many tokens, of which the first `right` came true."""
        trials = min(right + 1, drafted)
        if trials:
            self.all.setdefault(kind, Record()).add(right, trials)
            self.each.setdefault((sequence, kind), Record()).add(right, trials)

    def forget(self, sequence: int) -> None:
        """A sequence has ended."""
        for key in [key for key in self.each if key[0] == sequence]:
            del self.each[key]
