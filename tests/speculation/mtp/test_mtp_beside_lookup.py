"""A drafter that costs beside one that does not: the likelier guess is taken, and what it costs counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any, Literal

import pytest
from mtp_runs import always, opened, prompt

from headrace import SamplingParams
from headrace.engine.generation.sequence import Sequence, make_sequence
from headrace.engine.ledger.guesses import Guesses
from headrace.engine.speculation.acceptance import FIRST_OF
from headrace.engine.speculation.drafter import MTP_KIND, Draft
from headrace.engine.speculation.length import Passes, best_lengths
from headrace.engine.speculation.pass_times import PassTimes
from headrace.engine.speculation.speculation import TRIED_AGAIN, Speculation
from headrace.engine.speculation.vocabulary.draft_vocabulary import DraftVocabulary, Way


class Free:
    """Says one token again and again, where it says anything."""

    is_free: Literal[True] = True
    token_s = 0.0

    def __init__(self, token: int | None) -> None:
        self.token = token

    def draft(self, sequence: Sequence, most: int) -> Draft | None:
        return None if self.token is None else Draft([self.token] * most, "free")

    def forget(self, sequence: Sequence) -> None:
        """Nothing."""


class Whole(DraftVocabulary):
    """All tokens of a vocabulary, each guess of which takes so many seconds."""

    def __init__(self, token_s: float) -> None:
        self.token_s = token_s

    def ways(self) -> list[Way]:
        return [Way(0, 160, self.token_s)]

    def shares(self, sequence: Sequence) -> list[float]:
        return [1.0]

    def use(self, rows: int) -> None:
        assert rows == 160


class Costly:
    """Says another one; each token takes so many seconds."""

    is_free: Literal[False] = False
    kind = MTP_KIND

    def __init__(self, token: int, token_s: float = 0.0) -> None:
        self.token, self.vocabulary, self.made = token, Whole(token_s), Guesses()
        self.asked: list[list[int]] = []
        self.ended: list[int] = []

    def draft_all(self, asked: Seq[tuple[Sequence, int]]) -> list[Draft | None]:
        self.asked.append([length for _, length in asked])
        return [Draft([self.token] * length, self.kind) for _, length in asked]

    def forget(self, sequence: Sequence) -> None:
        self.ended.append(sequence.id)


class Even:
    """A pass takes the same time whatever is in it: every likely token pays."""

    expert_bytes = 1000

    def drafted(self, sequences: int, drafted: int, context: int, share: float) -> float | None:
        return 1.0 + 0.1 * drafted


def make(free: Free, costly: Costly) -> Speculation:
    return Speculation(free, PassTimes(Even(), experts=8, top_k=4), behind=costly)


def run(speculation: Speculation, tokens: list[int], count: int = 1) -> list[list[int]]:
    """Drafts of a sequence, the first of some, while it comes to these tokens one a pass."""
    many = [make_sequence(i, list(range(100)), SamplingParams(max_new_tokens=1000)) for i in range(count)]
    found = []
    for token in tokens:
        for one in many:
            one.draft, one.computed = [], len(one.tokens) - 1
        speculation.propose(many, 100)
        found.append(many[0].draft)
        for one in many:
            one.tokens.append(token)
    for one in many:
        speculation.forget(one)
    return found


def test_what_was_right_is_asked() -> None:
    """Both guess; text that the layer foresees goes to it, and the other way round."""
    costly = Costly(5)
    drafts = run(make(Free(7), costly), [5] * 40)
    assert all(set(one) == {5} for one in drafts[10:])
    assert costly.ended == [0]
    drafts = run(make(Free(7), Costly(5)), [7] * 40)
    assert all(set(one) == {7} for one in drafts[10:])


def test_where_the_first_has_nothing_the_other_is_asked() -> None:
    costly = Costly(5)
    drafts = run(make(Free(None), costly), [5] * 40)
    assert all(set(one) == {5} for one in drafts)
    assert FIRST_OF[MTP_KIND] > 0.5


def test_sequences_are_asked_for_together() -> None:
    costly = Costly(5)
    run(make(Free(None), costly), [5] * 10, count=3)
    assert all(len(one) == 3 for one in costly.asked)


def test_what_costs_too_much_is_tried_now_and_then() -> None:
    """Of one token at a time, and no more often than it is said."""
    costly = Costly(5, token_s=2.0)
    run(make(Free(None), costly), [5] * (3 * TRIED_AGAIN))
    assert costly.asked == []  # even if every token were right
    wrong = Costly(5)
    run(make(Free(None), wrong), [9] * (3 * TRIED_AGAIN))
    tries = [one for one in wrong.asked if one == [1]]
    assert 1 <= len(tries) <= 20
    assert len(wrong.asked) < 40


@pytest.mark.parametrize(("token_s", "length"), [(0.0, 8), (0.05, 8), (0.35, 4), (0.9, 0)])
def test_costs_shorten_a_draft(token_s: float, length: int) -> None:
    """By hand: with a rate of 0.9 and a tenth of a pass for each token more, the best of tokens over seconds."""

    def rate(count: int) -> float:
        return (1 + sum(0.9**j for j in range(1, count + 1))) / (1 + count * (0.1 + token_s))

    best = max(range(9), key=rate)
    found: list[Any] = best_lengths([0.9], [8], Passes(lambda n: 1.0 + 0.1 * n), 100, costs=[token_s])
    assert found == [best if rate(best) > 1.03 else 0]
    assert abs(found[0] - length) <= 3


def test_what_guesses_take_is_not_counted_twice(with_mtp: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the time of a pass, and not in what the pass itself is expected to take."""
    seen: list[float] = []
    how = SamplingParams(max_new_tokens=30, ignore_eos=True)
    with opened(with_mtp("qwen3_moe")) as llm:
        drafter = always(llm)
        assert llm.loop.drafts is not None
        speculation = llm.loop.drafts.speculation
        speculation.times = PassTimes(Even(), experts=8, top_k=3)
        monkeypatch.setattr(speculation.times, "saw", lambda *numbers: seen.append(numbers[3]))
        slow = drafter.draft_all

        def later(asked: Any) -> Any:
            time.sleep(0.02)
            return slow(asked)

        monkeypatch.setattr(drafter, "draft_all", later)
        with llm.ledger.recording() as passes:
            llm.generate([prompt(45)], how)
    decode = [one.measured_s for one in passes if one.phase == "decode"]
    assert len(decode) == len(seen)
    assert sum(decode) - sum(seen) > 0.02 * sum(one.drafted > 0 for one in passes) > 0.2
