"""Among how many tokens guesses are chosen: by the text, by what rows take, and by how often they are right."""

from __future__ import annotations

import random
from collections.abc import Sequence as Seq
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from headrace import SamplingParams
from headrace.engine.generation.sequence import Sequence, make_sequence
from headrace.engine.ledger.guesses import Guesses
from headrace.engine.planning.own_layer import draft_rows
from headrace.engine.speculation.drafter import MTP_KIND, Draft
from headrace.engine.speculation.pass_times import PassTimes
from headrace.engine.speculation.speculation import Guess, Speculation
from headrace.engine.speculation.vocabulary.coverage import PRIOR, Coverage
from headrace.engine.speculation.vocabulary.draft_vocabulary import DraftVocabulary

VOCAB = 248_320
PASS_S = 0.1


class Even:
    """A pass takes the same time whatever is in it."""

    expert_bytes = 1000

    def drafted(self, sequences: int, drafted: int, context: int, share: float) -> float | None:
        return PASS_S


class Costly:
    """Says token 5 again and again."""

    is_free: Literal[False] = False
    kind = MTP_KIND

    def __init__(self, rest_s: float, all_s: float, asked: int | str = "auto") -> None:
        self.head: Any = SimpleNamespace(vocab=VOCAB, rows=0, last=draft_rows.last_rows(VOCAB))
        sizes = draft_rows.choices(asked, VOCAB)
        self.vocabulary, self.made = DraftVocabulary(self.head, sizes, rest_s, all_s / VOCAB), Guesses()
        self.lengths: list[int] = []

    def draft_all(self, asked: Seq[tuple[Sequence, int]]) -> list[Draft | None]:
        self.lengths += [length for _, length in asked]
        return [Draft([5] * length, self.kind) for _, length in asked]

    def forget(self, sequence: Sequence) -> None:
        self.vocabulary.forget(sequence)


def chosen(costly: Costly, tokens: list[int], rate: float = 0.9) -> int:
    """Rows that a draft behind a text is chosen among; 0: there is none."""
    speculation = Speculation(costly, PassTimes(Even(), experts=8, top_k=4))
    for _ in range(40):
        speculation.acceptance.saw(9, MTP_KIND, 10, round(10 * rate))
    one = make_sequence(0, tokens, SamplingParams(max_new_tokens=100))
    one.computed = len(tokens)
    speculation.propose([one], 8)
    return costly.head.rows if one.draft else 0


def text(*below: int, tokens: int = 512) -> list[int]:
    """Tokens of which as many are below each of these."""
    chance = random.Random(3)
    return [chance.randrange(below[i % len(below)]) for i in range(tokens)]


def test_a_text_of_frequent_tokens_takes_few_rows_and_another_takes_all() -> None:
    assert chosen(Costly(0.002, 0.02), text(8000)) == 8192
    assert chosen(Costly(0.002, 0.02), text(30_000)) == 32768
    assert chosen(Costly(0.002, 0.02), [200_000 + i for i in range(512)]) == VOCAB


def test_rows_that_cost_nothing_are_all_taken() -> None:
    assert chosen(Costly(0.02, 0.0), text(8000, 248_000)) == VOCAB


def test_where_no_number_of_rows_pays_nothing_is_drafted() -> None:
    assert chosen(Costly(0.2, 0.02), text(8000)) == 0
    assert chosen(Costly(0.03, 0.02), text(8000)) == 8192
    assert chosen(Costly(0.03, 0.02), text(8000), rate=0.0) == 0


def test_few_rows_pay_where_all_do_not() -> None:
    assert chosen(Costly(0.002, 0.3, "all"), text(8000)) == 0
    assert chosen(Costly(0.002, 0.3), text(8000)) == 8192


def test_a_number_that_was_asked_for_is_taken_and_what_it_misses_counts() -> None:
    assert chosen(Costly(0.002, 0.02, 1000), text(900)) == 1000
    assert chosen(Costly(0.002, 0.02, 1000), text(VOCAB)) == 0


def test_a_token_that_cannot_be_said_is_no_mistake() -> None:
    """How often a layer is right is counted of the tokens that it may say."""
    speculation = Speculation(Costly(0.0, 0.0), None)
    for came, right, trials in (([5, 5, 9], 2, 3), ([5, 5, 900], 2, 2), ([900], 0, 0), ([9], 0, 1)):
        one = make_sequence(0, [1, *came], SamplingParams(max_new_tokens=9))
        speculation.acceptance.all.clear()
        speculation.guesses[0] = [Guess(1, Draft([5, 5, 5], MTP_KIND, range(100, 1000)), 3)]
        speculation._look_back(one)
        found = speculation.acceptance.all.get(MTP_KIND)
        assert (0, 0) if found is None else (found.right, found.trials) == (right, trials)


def test_shares_go_from_what_is_known_to_what_the_text_has() -> None:
    sizes = draft_rows.choices("auto", VOCAB)
    priors = [draft_rows.share(rows, VOCAB) for rows in sizes]
    found = Coverage(sizes, [*priors, 1.0], range(VOCAB - 512, VOCAB))
    assert found.shares()[: len(sizes)] == pytest.approx(priors)
    tokens = [10_000] * 300
    found.take_in(tokens)
    assert found.shares()[0] == pytest.approx(PRIOR * priors[0] / (PRIOR + 300))
    assert found.shares()[1] == pytest.approx((PRIOR * priors[1] + 300) / (PRIOR + 300))
    tokens += [VOCAB - 1] * 700  # special tokens can be said by all
    found.take_in(tokens)
    found.take_in(tokens)
    assert found.shares()[0] > 0.7
    assert found.shares()[len(sizes) - 1] == pytest.approx(1.0)


def test_what_a_guess_takes_is_measured_by_part() -> None:
    costly = Costly(0.0, 0.0)
    costly.head.rows = 65536
    costly.vocabulary.took(0.010, 0.006, 2)
    assert costly.vocabulary.rest_s == pytest.approx(0.002)
    assert costly.vocabulary.seconds(65536) == pytest.approx(0.005)
    assert costly.vocabulary.seconds(VOCAB) == pytest.approx(0.002 + 0.003 * VOCAB / (65536 + 512))


def test_shares_of_rows_grow_to_all() -> None:
    found = [draft_rows.share(rows, VOCAB) for rows in (1, 100, 8192, 10_000, 65536, 131_072, 200_000, VOCAB)]
    assert found == sorted(found)
    assert (found[2], found[-1]) == (0.76, 1.0)
    assert 0.99 < found[-2] < 1.0
    assert draft_rows.choices("auto", 32_000) == (8192, 16384, 32_000)
    assert draft_rows.choices("all", 32_000) == draft_rows.choices(40_000, 32_000) == (32_000,)
    assert draft_rows.read_rows(31_900, 32_000) == 32_000
