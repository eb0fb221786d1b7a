"""How long drafts are: by what passes are expected to take, and how likely tokens are."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import SamplingParams
from headrace.engine.generation.sequence import Sequence, make_sequence
from headrace.engine.planning.speed import computed_again
from headrace.engine.speculation.acceptance import FIRST, Acceptance
from headrace.engine.speculation.drafter import Draft
from headrace.engine.speculation.length import EVEN, GAIN, Passes, best_lengths, tokens_a_second
from headrace.engine.speculation.pass_times import PassTimes
from headrace.engine.speculation.seen_times import SeenTimes
from headrace.engine.speculation.speculation import Speculation


def line(plain: float, each: float, put_back: bool = False) -> Passes:
    return Passes(lambda drafted: plain + each * drafted, put_back)


@pytest.mark.parametrize(
    ("rate", "each", "length"),
    [(0.9, 0.0, 8), (0.9, 1.0, 0), (0.3, 0.5, 0), (0.6, 0.3, 1), (0.9, 0.3, 5), (1.0, 0.9, 8), (0.0, 0.0, 0)],
)
def test_the_length_with_most_tokens_a_second(rate: float, each: float, length: int) -> None:
    found = best_lengths([rate], [8], line(1.0, each), 100)
    speeds = [sum(rate**j for j in range(d + 1)) / (1 + each * d) for d in range(9)]
    assert found == [length]
    assert speeds[length] == pytest.approx(max(speeds)) or max(speeds) < GAIN


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 8)), min_size=1, max_size=4),
    st.floats(0, 1.5), st.integers(0, 20), st.integers(0, 3),
)  # fmt: skip
def test_no_choice_of_lengths_is_better(asked: list[tuple[float, int]], each: float, room: int, others: int) -> None:
    """Held against every choice, where a pass takes the same whichever sequence drafts."""
    rates, longest = [rate for rate, _ in asked], [most for _, most in asked]

    def speed(lengths: list[int]) -> float:
        tokens = others + sum(sum(rate**j for j in range(d + 1)) for rate, d in zip(rates, lengths, strict=True))
        return tokens / (1 + each * sum(lengths))

    found = best_lengths(rates, longest, line(1.0, each), room, others)
    assert sum(found) <= room
    assert all(d <= most for d, most in zip(found, longest, strict=True))
    plain = speed([0] * len(rates))
    best = max((speed([d if i == n else 0 for n in range(len(rates))]) for i, most in enumerate(longest)
                for d in range(min(most, room) + 1)), default=plain)  # fmt: skip
    assert speed(found) >= min(best, plain * GAIN if best <= plain * GAIN else best) - 1e-9 or speed(found) == plain
    assert speed(found) == plain or speed(found) > GAIN * plain - 1e-9


@given(st.floats(0, 1), st.integers(0, 6))
def test_what_a_refused_draft_makes_computed_again(rate: float, length: int) -> None:
    """Over all that may become of a draft, each token right or not by itself."""
    expected = 0.0
    for right in itertools.product((True, False), repeat=length):
        odds = math.prod(rate if one else 1 - rate for one in right)
        held = length if all(right) else right.index(False)
        expected += odds * (0 if held == length else 1 + held)
    assert computed_again(rate, length) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("rate", "each", "drafts"), [(0.6, 0.5, False), (0.9, 0.25, True), (1.0, 0.9, True)])
def test_drafts_pay_for_what_is_computed_again(rate: float, each: float, drafts: bool) -> None:
    """By hand: a draft of d tokens takes each * (d + the tokens that its refusal makes computed again)."""
    passes, lengths = line(1.0, each, put_back=True), range(9)
    speeds = [sum(rate**j for j in range(d + 1)) / (1 + each * (d + computed_again(rate, d))) for d in lengths]
    assert [tokens_a_second([rate], [d], passes) for d in lengths] == pytest.approx(speeds)
    found = best_lengths([rate], [8], passes, 100)
    assert found == [speeds.index(max(speeds)) if drafts else 0]
    assert best_lengths([rate], [8], line(1.0, each), 100) > [0], "a model without states drafts there"


def test_where_nothing_is_known_of_seconds_a_token_must_be_likely() -> None:
    assert best_lengths([0.8, 0.4], [8, 8], Passes(lambda _: None), 100) == [3, 0]
    assert 0.8**3 >= EVEN > 0.8**4


def test_what_others_had_is_what_a_sequence_begins_with() -> None:
    seen = Acceptance()
    assert seen.rate(0, "x") == FIRST
    for _ in range(30):
        seen.saw(0, "x", 4, 4)
    assert seen.rate(0, "x") > 0.9
    assert seen.rate(1, "x") == pytest.approx(seen.all["x"].rate(FIRST))
    for _ in range(30):
        seen.saw(1, "x", 4, 0)
    assert seen.rate(1, "x") < 0.2 < seen.rate(0, "x")
    seen.forget(1)
    assert (1, "x") not in seen.each


class Model:
    """Predicts: a second for what all tokens read, and a hundredth for each per cent of the experts."""

    expert_bytes = 1000

    def drafted(self, sequences: int, drafted: int, context: int, share: float) -> float | None:
        return 1.0 + share


def test_a_share_of_the_experts_and_seconds_are_learnt() -> None:
    times = PassTimes(Model(), experts=100, top_k=10)
    fresh = times.of(1, 0)
    assert fresh(0) == pytest.approx(1.1)
    assert fresh(1) == pytest.approx(1.19)
    for _ in range(60):  # passes of two tokens read half of what uniform routing adds, and take twice what is predicted
        times.saw(1, 0, 0, 2.2, read=100)
        times.saw(1, 1, 0, 2 * 1.145, read=145)
    assert times.added == pytest.approx(0.5, abs=0.01)
    assert times.of(1, 0)(0) == pytest.approx(2.2)
    assert times.of(1, 0)(1) == pytest.approx(2.29, rel=1e-3)
    third = times.of(1, 0)(2)
    assert third == pytest.approx(2 * (1 + 0.1 + 0.5 * (0.271 - 0.1)), rel=1e-3)
    times.saw(1, 0, 0, 60.0, read=100)  # something else ran
    assert times.of(1, 0)(0) == pytest.approx(1.2 * 2.2)


class Always:
    is_free, token_s = True, 0.0

    def draft(self, sequence: Sequence, most: int) -> Draft | None:
        return Draft([7] * most, "seven")

    def forget(self, sequence: Sequence) -> None:
        """Nothing."""


def sequence() -> Sequence:
    made = make_sequence(0, list(range(100)), SamplingParams(max_new_tokens=1000))
    made.computed = 100
    return made


def grown(speculation: Speculation, tokens: list[int]) -> list[int]:
    """Lengths of drafts while a sequence comes to so many tokens, one a pass, as if drafts were refused."""
    one, found = sequence(), []
    for token in tokens:
        one.draft = []
        speculation.propose([one], 100)
        found.append(len(one.draft))
        one.tokens.append(token)
        one.computed += 1
    return found


def test_guesses_are_judged_without_being_tried() -> None:
    """A text that the drafter does not foresee costs no pass, one that it does gets drafts after a while."""
    costly = PassTimes(Costly(), experts=8, top_k=4)
    wrong = grown(Speculation(Always(), costly), [1] * 60)
    assert wrong == [0] * 60
    right = grown(Speculation(Always(), costly), [7] * 60)
    assert right[0] == 0
    assert max(right) > 0


class Costly:
    """Each token more of a pass takes two thirds of the first."""

    expert_bytes = 1000

    def drafted(self, sequences: int, drafted: int, context: int, share: float) -> float | None:
        return 1.0 + drafted * 2 / 3


class Unknown:
    expert_bytes = 0

    def drafted(self, sequences: int, drafted: int, context: int, share: float) -> float | None:
        return None


def test_by_itself_nothing_is_drafted_where_no_seconds_are_known() -> None:
    unknown = PassTimes(Unknown(), experts=8, top_k=4)
    assert not any(grown(Speculation(Always(), unknown), [7] * 40))
    assert any(grown(Speculation(Always(), unknown, must_pay=False), [7] * 40))


def test_seconds_that_nothing_predicts_are_those_that_passes_took() -> None:
    """A size above all that were seen is tried once; what lies between two is between them."""
    times = PassTimes(Unknown(), experts=8, top_k=4)
    assert times.of(1, 50)(0) is None
    times.saw(1, 0, 50, 1.0, read=0)
    assert times.of(1, 50)(8) == times.of(1, 50)(0) == 1.0
    times.saw(1, 8, 50, 9.0, read=0)
    found = [times.of(1, 50)(d) for d in range(9)]
    assert found == pytest.approx([1 + d for d in range(9)], rel=2e-3)
    assert best_lengths([0.9], [8], Passes(times.of(1, 50)), 8) == [0]  # a token more takes as long as one more pass
    times.saw(1, 0, 50, 50.0, read=0)  # something else ran
    assert times.of(1, 50)(0) == pytest.approx(1.2, rel=1e-2)


def test_what_was_slow_once_is_tried_again_some_day() -> None:
    seen = SeenTimes()
    seen.saw(2, 9.0)
    for _ in range(3000):
        seen.saw(1, 1.0)
    assert seen.of(2) == pytest.approx(9 * 0.999**3000)
    assert seen.of(1) == pytest.approx(1.0, rel=1e-2)
