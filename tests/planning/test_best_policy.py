"""Which policy is the best for a budget by a trace and rates, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import OptionError
from headrace.engine.planning import best_policy
from headrace.engine.planning.best_policy import EQUAL, FIXED, GAIN, MOVING, Best, choose
from headrace.engine.planning.replays import Replays
from headrace.engine.policies.protocol import Shape
from headrace.engine.policies.registry import BOX, Known, make
from headrace.engine.policies.replay.choices import of_batches
from headrace.engine.policies.replay.replay import Rates, Replayed, replay
from headrace.engine.policies.residents import Counts
from headrace.engine.traces import synthetic

RATES = Rates(cpu=60e9, link=25e9, gpu=900e9)
SLOW_LINK = Rates(cpu=60e9, link=3e9, gpu=900e9)
MB = 10**6


def of_ids(ids: Any, expert_bytes: int = MB, experts: int = 64, batch: int = 1, rates: Rates = RATES) -> Replays:
    shape = Shape((experts,) * ids.shape[1], (expert_bytes,) * ids.shape[1])
    choices = of_batches(ids, batch)
    known = Known(counts=choices.counts(shape.experts), future=choices, fetched=[0, 0, 1, 1, 2])
    return Replays(shape=shape, choices=choices, known=known, rates=rates)


def made(kind: str, tokens: int = 600, rates: Rates = RATES) -> Replays:
    drawn = synthetic.draw(kind, layers=4, experts=64, top_k=4, tokens=tokens, seed=7)
    return of_ids(np.concatenate(list(drawn)), rates=rates)


def share(replays: Replays, part: float) -> int:
    return int(part * replays.shape.nbytes)


def test_every_policy_of_the_box_is_compared() -> None:
    assert {*FIXED, *MOVING, best_policy.CEILING} == set(BOX)
    replays = made("topics")
    best = choose(replays, share(replays, 0.25))
    assert [row.policy for row in best.rows] == [n for n in (*FIXED, *MOVING) if n != "second-gpu"] + ["belady"]
    two = replace(replays, known=replace(replays.known, store_bytes=share(replays, 0.1)))
    two = replace(two, rates=replace(RATES, store=900e9))
    assert "second-gpu" in [row.policy for row in choose(two, share(replays, 0.25)).rows]
    few = choose(replays, share(replays, 0.25), candidates=["lru", "belady"])
    assert [row.policy for row in few.rows] == ["all-ram", "lru", "belady"]


def test_the_second_half_is_what_is_compared() -> None:
    """By hand: frequency learns 0 and 1 from the first half, and the second chooses 1 and 2; what moves has 0 and 1
    there when the second half begins."""
    ids = np.array([[[n]] for n in (0, 0, 1, 1, 0, 1, 1, 2, 2, 2)])
    best = choose(of_ids(ids, experts=4), 2 * MB)
    assert (best.row("all-ram").counts.on_cpu, best.row("all-ram").passes, best.row("all-ram").tokens) == (5, 5, 5)
    assert best.row("frequency").counts.hits == 2
    lru = best.row("lru").counts
    assert (lru.hits, lru.fetched, lru.evicted) == (4, 1, 1)
    whole = replay(make("lru", Known()), Shape((4,), (MB,)), 2 * MB, of_batches(ids), tokens=10, rates=RATES)
    start = replay(make("lru", Known()), Shape((4,), (MB,)), 2 * MB, of_batches(ids[:5]), tokens=5, rates=RATES)
    assert best.row("lru").seconds == pytest.approx((whole.seconds or 0) - (start.seconds or 0))
    assert best.row("belady").counts.hits == 5
    assert any("only 5 passes were compared" in reason for reason in best.reasons)


def test_only_the_last_passes_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best_policy, "MOST_PASSES", 10)
    ids = np.concatenate([np.full((50, 1, 1), 3), np.array([[[n % 2]] for n in range(10)])])
    best = choose(of_ids(ids, experts=4), MB)
    assert best.rows[0].passes == 5
    assert best.row("frequency").counts.hits == 2  # learns 0, not 3


def test_tokens_of_a_pass_count_together() -> None:
    ids = np.concatenate(list(synthetic.draw("zipf", layers=2, experts=64, top_k=4, tokens=101, seed=1)))
    best = choose(of_ids(ids, batch=4), 20 * MB)
    assert {row.passes for row in best.rows} == {13}  # of 26, the last one of one token
    assert {row.tokens for row in best.rows} == {49}


def test_with_uniform_routing_nothing_that_moves_is_chosen_and_more_is_useless() -> None:
    """The link is too slow to bring what is used once; 1 % of the experts gains nothing that one would notice."""
    replays = made("uniform", rates=SLOW_LINK)
    best = choose(replays, share(replays, 0.01))
    assert best.choice == "all-ram"
    assert best.is_no_cache_as_good
    assert best.is_more_useless
    assert any(reason.startswith("no cache at all is as good") for reason in best.reasons)
    assert any(reason.startswith("a bigger cache is useless here") for reason in best.reasons)
    half = choose(replays, share(replays, 0.4))
    assert half.choice == "uniform"
    assert half.gain > 0.5
    assert not half.is_more_useless


def test_with_favourites_that_stay_a_fixed_placement_is_enough() -> None:
    replays = made("zipf", rates=SLOW_LINK)
    best = choose(replays, share(replays, 0.2))
    assert best.choice == "frequency"
    assert best.chosen.counts.hit_rate > 0.4
    assert any("moving is to gain 3%" in reason for reason in best.reasons)


def test_with_a_fast_link_and_what_comes_again_soon_moving_wins() -> None:
    """Favourites of one half are not those of the other."""
    generator = np.random.default_rng(3)
    ids = np.stack([generator.permutation(6)[:3] + 6 * (token // 40 % 8) for token in range(640)])[:, None, :]
    best = choose(of_ids(ids, rates=Rates(cpu=20e9, link=50e9, gpu=900e9)), 8 * MB)
    assert best.choice in MOVING
    assert best.moving is not None
    assert best.chosen is best.moving
    assert any(f"{best.fixed.policy}, the best fixed placement, has" in reason for reason in best.reasons)
    assert best.chosen.counts.hit_rate > 0.8


def test_all_that_fits_and_nothing_that_does() -> None:
    replays = made("zipf", tokens=100)
    assert choose(replays, replays.shape.nbytes).choice == "uniform"
    assert choose(replays, replays.shape.nbytes).more is None
    nothing = choose(replays, 0)
    assert (nothing.choice, nothing.more, nothing.gain) == ("all-ram", None, 0.0)
    assert not nothing.is_more_useless


def row(policy: str, tokens_per_s: float) -> Replayed:
    return Replayed(policy=policy, budget=1, passes=100, tokens=100, counts=Counts(hits=1), seconds=100 / tokens_per_s)


@pytest.mark.parametrize(
    ("speeds", "choice"),
    [
        ({"all-ram": 100, "uniform": 100, "frequency": 100, "lru": 100, "lfu": 100}, "all-ram"),
        ({"all-ram": 100, "uniform": 150, "frequency": 151, "lru": 152}, "uniform"),
        ({"all-ram": 100, "uniform": 150, "frequency": 153, "lru": 157}, "frequency"),
        ({"all-ram": 100, "uniform": 150, "frequency": 153, "lru": 158, "lfu": 159, "belady": 300}, "lru"),
        ({"all-ram": 100, "uniform": 150, "lru": 150, "lfu": 200}, "lfu"),
        ({"all-ram": 100, "uniform": 120, "lru": 80, "lfu": 70}, "uniform"),
    ],
)
def test_the_simplest_of_those_that_are_as_fast(
    speeds: dict[str, float], choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replays = made("uniform", tokens=10)
    assert (EQUAL, GAIN) == (0.01, 0.03)

    def rows(recent: Any, names: Any, budget: int) -> Any:
        return [row(name, speeds[name]) for name in names]

    monkeypatch.setattr(best_policy, "_rows", rows)
    assert choose(replays, 1, candidates=list(speeds)).choice == choice


def test_it_is_the_same_every_time() -> None:
    replays = made("topics", tokens=200)
    first, second = (choose(replays, share(replays, 0.2)) for _ in range(2))
    assert first == second
    assert first.reasons == second.reasons


def test_what_cannot_be_chosen_is_said() -> None:
    replays = made("zipf", tokens=50)
    with pytest.raises(OptionError, match="policy 'auto' goes by tokens/s: that takes rates"):
        choose(replace(replays, rates=None), 10)
    with pytest.raises(OptionError, match="the trace has one pass, and half of it is to be learned from"):
        choose(made("zipf", tokens=1), 10)


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(0, 16), st.integers(1, 3))
def test_nothing_hits_more_than_the_optimum_and_the_choice_is_near_the_fastest(
    data: st.DataObject, slots: int, batch: int
) -> None:
    tokens = data.draw(st.integers(2 * batch, 30))
    rows = [[data.draw(st.permutations(range(6)))[:2] for _ in range(2)] for _ in range(tokens)]
    best: Best = choose(of_ids(np.array(rows), experts=6, batch=batch), slots * MB)
    *candidates, ceiling = best.rows
    assert ceiling.policy == "belady"
    for one in candidates:
        assert one.counts.hits <= ceiling.counts.hits, one.policy
        assert one.counts.choices == ceiling.counts.choices
        assert one.tokens == ceiling.tokens
    fastest = max(one.tokens_per_s or 0 for one in candidates)
    assert (best.chosen.tokens_per_s or 0) >= fastest * (1 - EQUAL) / (1 + GAIN)
    assert best.chosen in (best.fixed, best.moving)
