"""Drafts of a model that runs: asks the drafter, chooses lengths, and learns from what became of them.

A guess that costs nothing is made for every token, drafted or not: how often it would have come true is then known
before a draft is tried, and text that no drafter foresees costs no pass. One that takes a model is made where it is
expected to pay; how often it was right fades, so that it is tried again now and then.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..generation.sequence import Sequence
from .acceptance import Acceptance
from .drafter import MODEL_KIND, MOST_DRAFT, Draft, Drafter
from .length import best_lengths
from .pass_times import PassTimes

LEAST_CONTEXT = 32  # tokens before a draft is tried: with fewer a pass of several may go another way than one of one
TRIED_AGAIN = 128  # tokens without a draft after which a model that was not worth it is asked for one again


@dataclass
class Guess:
    """What was guessed of a sequence at some point: the tokens before it, and the guess."""

    start: int
    draft: Draft
    drafted: int = 0  # tokens of it that a pass verified


@dataclass
class Speculation:
    """Of one model. times: None: a token is drafted where it is likely enough. must_pay: where nothing is known of
    seconds, nothing is drafted. most_states: sequences whose recurrent state can be put back after a pass; None: the
    model has no such."""

    drafter: Drafter
    times: PassTimes | None
    must_pay: bool = True
    most_states: int | None = None
    acceptance: Acceptance = field(default_factory=Acceptance)
    guesses: dict[int, Guess] = field(default_factory=dict)
    idle: dict[int, int] = field(default_factory=dict)  # tokens since a sequence's last draft

    def propose(self, sequences: list[Sequence], room: int) -> None:
        """Gives sequences their drafts for the next pass; as `Drafts` of the scheduler."""
        for sequence in sequences:
            self._look_back(sequence)
        able = [s for s in sequences if _most(s) > 0 and s.computed >= LEAST_CONTEXT]
        able = able if self.most_states is None else able[: self.most_states]
        if not able or (self.must_pay and not self._can_tell(len(sequences), able[0].computed)):
            return
        if self.drafter.is_free:
            self._propose_free(able, len(sequences), room)
        else:
            self._propose_costly(able, len(sequences), room)

    def _can_tell(self, sequences: int, context: int) -> bool:
        """Whether seconds of passes are known."""
        return self.times is not None and self.times.of(sequences, context)(0) is not None

    def _propose_free(self, able: list[Sequence], sequences: int, room: int) -> None:
        found = []
        for sequence in able:
            draft = self.drafter.draft(sequence, min(MOST_DRAFT, _most(sequence)))
            if draft is not None and (allowed := _allowed(sequence, draft.tokens)):
                draft = Draft(draft.tokens[:allowed], draft.kind)
                self.guesses[sequence.id] = Guess(len(sequence.tokens), draft)
                found.append((sequence, draft))
        rates = [self.acceptance.rate(s.id, draft.kind) for s, draft in found]
        lengths = self._lengths(rates, [len(draft.tokens) for _, draft in found], able, sequences, room)
        for (sequence, draft), length in zip(found, lengths, strict=True):
            sequence.draft = draft.tokens[:length]
            self.guesses[sequence.id].drafted = length

    def _propose_costly(self, able: list[Sequence], sequences: int, room: int) -> None:
        again = [self.idle.get(sequence.id, 0) >= TRIED_AGAIN for sequence in able]
        known = [self.acceptance.rate(sequence.id, MODEL_KIND) for sequence in able]
        rates = [1.0 if is_again else rate for is_again, rate in zip(again, known, strict=True)]
        most = [1 if is_again else MOST_DRAFT for is_again in again]
        longest = [min(n, _most(sequence)) for n, sequence in zip(most, able, strict=True)]
        for sequence, length in zip(able, self._lengths(rates, longest, able, sequences, room), strict=True):
            self.idle[sequence.id] = 0 if length else self.idle.get(sequence.id, 0) + 1
            draft = self.drafter.draft(sequence, length) if length else None
            if draft is not None and (allowed := _allowed(sequence, draft.tokens)):
                sequence.draft = draft.tokens[:allowed]
                self.guesses[sequence.id] = Guess(len(sequence.tokens), Draft(sequence.draft, draft.kind), allowed)

    def _lengths(
        self, rates: list[float], longest: list[int], able: list[Sequence], sequences: int, room: int
    ) -> list[int]:
        if not rates:
            return []
        passes = None if self.times is None else self.times.of(sequences, max(s.computed for s in able))

        def seconds(drafted: int) -> float | None:
            took = None if passes is None else passes(drafted)
            return None if took is None else took + drafted * self.drafter.token_s

        return best_lengths(rates, longest, seconds, room, sequences - len(rates))

    def _look_back(self, sequence: Sequence) -> None:
        """What became of the last guess, as far as tokens have come since. One that was verified is judged by the
        tokens that were, one that was not by the first that came."""
        guess = self.guesses.pop(sequence.id, None)
        if guess is None:
            return
        came = sequence.tokens[guess.start :]
        looked_at, right = min(guess.drafted or 1, len(came)), 0
        while right < looked_at and came[right] == guess.draft.tokens[right]:
            right += 1
        self.acceptance.saw(sequence.id, guess.draft.kind, looked_at, right)

    def forget(self, sequence: Sequence) -> None:
        """A sequence has ended."""
        self._look_back(sequence)
        self.idle.pop(sequence.id, None)
        self.acceptance.forget(sequence.id)
        self.drafter.forget(sequence)


def _most(sequence: Sequence) -> int:
    """Tokens that a draft may have: the last one that a sequence may come to is never in the cache."""
    return sequence.params.max_new_tokens - len(sequence.completion) - 1


def _allowed(sequence: Sequence, tokens: list[int]) -> int:
    """How many of these tokens a sequence's grammar allows; all where it has none."""
    constraint = sequence.constraint
    return len(tokens) if constraint is None else constraint.allows(tokens)
