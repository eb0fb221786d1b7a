"""Drafts of a model that runs: asks the drafters, chooses lengths, and learns from what became of them.

A guess that costs nothing is made for every token, drafted or not: how often it would have come true is then known
before a draft is tried, and text that no drafter foresees costs no pass. One that takes a model is made where it is
expected to pay, and to be right more often than the other; how often it was right fades, so that it is tried again now
and then. A sequence that computes tokens again, behind a draft that was refused, has none in that pass: refused once
more, all of them would be computed a third time, and passes would grow from one to the next.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

from ..generation.sequence import Sequence
from ..ledger.guesses import NONE as NO_GUESSES
from ..ledger.guesses import Guesses
from .acceptance import Acceptance
from .drafter import MOST_DRAFT, CostlyDrafter, Draft, Drafter
from .length import Passes, best_lengths, tokens_a_second
from .pass_times import PassTimes
from .vocabulary.draft_vocabulary import Way

LEAST_CONTEXT = 32  # tokens before a draft is tried: with fewer a pass of several may go another way than one of one
NONE_PAYS = f"no draft was expected to pay; the first is tried behind {LEAST_CONTEXT} tokens of text"  # for people
FREE = Way(-1, 0, 0.0)  # of guesses that choose among most tokens and take no time
TRIED_AGAIN = 128  # tokens without a draft after which a model that was not worth it is asked for one again


@dataclass
class Guess:
    """What was guessed of a sequence at some point: the tokens before it, and the guess."""

    start: int
    draft: Draft
    drafted: int = 0  # tokens of it that a pass verified


@dataclass
class Offer:
    """What may be drafted of a sequence: how likely its tokens are right, and up to how many. draft: None: it would
    have to be asked for. shares: by way to make it, how much of the text its tokens are: so often a token can be
    right."""

    sequence: Sequence
    rate: float
    longest: int
    draft: Draft | None = None
    shares: Seq[float] = ()

    def rate_of(self, way: Way) -> float:
        """How likely a token is right that is guessed this way."""
        return self.rate * self.shares[way.number] if self.shares else self.rate


@dataclass
class Speculation:
    """Of one model. drafter: asked first. behind: one that costs, asked where the first has nothing as good. times:
    None: a token is drafted where it is likely enough. must_pay: where nothing is known of seconds, nothing is drafted.
    most_states: sequences whose recurrent state can be put back after a pass; None: the model has no such."""

    drafter: Drafter | CostlyDrafter
    times: PassTimes | None
    must_pay: bool = True
    most_states: int | None = None
    behind: CostlyDrafter | None = None
    acceptance: Acceptance = field(default_factory=Acceptance)
    guesses: dict[int, list[Guess]] = field(default_factory=dict)
    idle: dict[int, int] = field(default_factory=dict)  # tokens since a sequence's last draft that cost something
    counted: Guesses = NO_GUESSES  # which passes have
    guessed_s: float = 0.0  # what guesses for the last pass took that cost something

    @property
    def drafters(self) -> list[Drafter | CostlyDrafter]:
        """All of them."""
        return [self.drafter] if self.behind is None else [self.drafter, self.behind]

    def propose(self, sequences: list[Sequence], room: int) -> None:
        """Gives sequences their drafts for the next pass; as `Drafts` of the scheduler."""
        self.guessed_s = 0.0
        for sequence in sequences:
            self._look_back(sequence)
        able = [s for s in sequences if _most(s) > 0 and s.computed >= LEAST_CONTEXT and not s.again]
        able = able if self.most_states is None else able[: self.most_states]
        if not able or (self.must_pay and not self._can_tell(len(sequences), able[0].computed)):
            return
        offers = [one for sequence in able if (one := self._offer(sequence)) is not None]
        if offers:
            passes = self._passes(sequences, max(s.computed for s in able))
            lengths = self._choose(offers, passes, len(sequences), room)
            self._take([(offer, length) for offer, length in zip(offers, lengths, strict=True) if length])

    def _choose(self, offers: list[Offer], passes: Passes, sequences: int, room: int) -> list[int]:
        """Tokens to draft of each offer. Where guesses can be made in several ways, by that with most tokens a second:
        fewer tokens to choose among take less, and are right less often."""
        costly = self._costly_one()
        if costly is None or all(one.draft is not None for one in offers):
            return self._asked(offers, FREE, passes, sequences, room)[0]
        *fewer, whole = costly.vocabulary.ways()
        ways = [whole]
        if fewer and passes.seconds(0) is not None:
            lengths, _ = self._asked(offers, FREE, passes, sequences, room)
            if not any(lengths):
                return lengths  # not even if guesses cost nothing
            ways += fewer
        found = [(way, *self._asked(offers, way, passes, sequences, room)) for way in ways]
        way, lengths, _ = max(found, key=lambda one: one[2] or 0.0)
        costly.vocabulary.use(way.rows)
        return lengths

    def _asked(
        self, offers: list[Offer], way: Way, passes: Passes, sequences: int, room: int
    ) -> tuple[list[int], float | None]:
        """The best lengths of drafts that are made in a way, and tokens a second with these; None: not known."""
        is_known = passes.seconds(0) is not None  # else a guess of one kind is as good as another
        rates = [one.rate_of(way) if one.draft is None and is_known else one.rate for one in offers]
        costs = [way.token_s if one.draft is None else 0.0 for one in offers]
        lengths = self._lengths(rates, [one.longest for one in offers], passes, sequences, room, costs)
        return lengths, tokens_a_second(rates, lengths, passes, sequences - len(rates), costs)

    def _passes(self, sequences: list[Sequence], context: int) -> Passes:
        """What passes take with drafted tokens, beside those that this one computes again anyway."""
        if self.times is None:
            return Passes(_unknown)
        seconds, again = self.times.of(len(sequences), context), sum(s.again for s in sequences)
        return Passes(lambda drafted: seconds(again + drafted), self.most_states is not None)

    def _costly_one(self) -> CostlyDrafter | None:
        return next((one for one in self.drafters if not one.is_free), None)

    def _can_tell(self, sequences: int, context: int) -> bool:
        """Whether seconds of passes are predicted."""
        return self.times is not None and self.times.are_known(sequences, context)

    def _offer(self, sequence: Sequence) -> Offer | None:
        """The best guess of a sequence that there is or may be."""
        free = costly = None
        for drafter in self.drafters:
            if drafter.is_free:
                free = self._free(drafter, sequence)
            else:
                costly = self._costly(drafter, sequence)
        return max((one for one in (free, costly) if one is not None), key=lambda one: one.rate, default=None)

    def _free(self, drafter: Drafter, sequence: Sequence) -> Offer | None:
        draft = drafter.draft(sequence, min(MOST_DRAFT, _most(sequence)))
        if draft is None or not (allowed := _allowed(sequence, draft.tokens)):
            return None
        draft = Draft(draft.tokens[:allowed], draft.kind)
        self.guesses.setdefault(sequence.id, []).append(Guess(len(sequence.tokens), draft))
        return Offer(sequence, self.acceptance.rate(sequence.id, draft.kind), allowed, draft)

    def _costly(self, drafter: CostlyDrafter, sequence: Sequence) -> Offer:
        """What it was worth; after a while without it one token is tried."""
        is_again = self.idle.get(sequence.id, 0) >= TRIED_AGAIN
        self.idle[sequence.id] = self.idle.get(sequence.id, 0) + 1
        rate = 1.0 if is_again else self.acceptance.rate(sequence.id, drafter.kind)
        longest = min(1 if is_again else MOST_DRAFT, _most(sequence))
        return Offer(sequence, rate, longest, None, drafter.vocabulary.shares(sequence))

    def _take(self, chosen: list[tuple[Offer, int]]) -> None:
        """Gives sequences so many tokens of what they were offered, and asks for what is not there yet."""
        asked = [(offer.sequence, length) for offer, length in chosen if offer.draft is None]
        for offer, length in chosen:
            if offer.draft is not None:
                offer.sequence.draft = offer.draft.tokens[:length]
                self.guesses[offer.sequence.id][-1].drafted = length
        costly = self._costly_one()
        if costly is None or not asked:
            return
        start = time.perf_counter()
        drafts = costly.draft_all(asked)
        self.guessed_s = time.perf_counter() - start
        for (sequence, _), draft in zip(asked, drafts, strict=True):
            self.idle[sequence.id] = 0
            if draft is not None and (allowed := _allowed(sequence, draft.tokens)):
                sequence.draft = draft.tokens[:allowed]
                kept = replace(draft, tokens=sequence.draft)
                guess = Guess(len(sequence.tokens), kept, allowed)
                self.guesses.setdefault(sequence.id, []).append(guess)

    def _lengths(
        self,
        rates: list[float],
        longest: list[int],
        passes: Passes,
        sequences: int,
        room: int,
        costs: list[float],
    ) -> list[int]:
        """Tokens to draft of each offer. costs: seconds of each of its tokens."""
        return best_lengths(rates, longest, passes, room, sequences - len(rates), costs)

    def _look_back(self, sequence: Sequence) -> None:
        """What became of the last guesses, as far as tokens have come since. One that was verified is judged by the
        tokens that were, one that was not by the first that came."""
        for guess in self.guesses.pop(sequence.id, ()):
            came = sequence.tokens[guess.start :]
            looked_at, right = min(guess.drafted or 1, len(came)), 0
            while right < looked_at and came[right] == guess.draft.tokens[right]:
                right += 1
            if right < looked_at and came[right] in guess.draft.left_out:
                looked_at = right  # what cannot be said is no mistake: it counts in how much of the text can
            self.acceptance.saw(sequence.id, guess.draft.kind, looked_at, right)

    def take_guesses(self) -> Guesses:
        """What was read to guess since this was asked last."""
        costly, before = self._costly_one(), self.counted
        self.counted = before if costly is None else costly.made
        return self.counted - before

    def forget(self, sequence: Sequence) -> None:
        """A sequence has ended."""
        self._look_back(sequence)
        self.idle.pop(sequence.id, None)
        self.acceptance.forget(sequence.id)
        for drafter in self.drafters:
            drafter.forget(sequence)


def _unknown(drafted: int) -> None:
    """Seconds of a pass where nothing is known of them."""


def _most(sequence: Sequence) -> int:
    """Tokens that a draft may have: the last one that a sequence may come to is never in the cache."""
    return sequence.params.max_new_tokens - len(sequence.completion) - 1


def _allowed(sequence: Sequence, tokens: list[int]) -> int:
    """How many of these tokens a sequence's grammar allows; all where it has none."""
    constraint = sequence.constraint
    return len(tokens) if constraint is None else constraint.allows(tokens)
