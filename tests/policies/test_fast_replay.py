"""The replay in C++ against the policies' own Python, to the count, and how fast both are."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.policies import ahead, frequency, recency
from headrace.engine.policies.fixed import Uniform
from headrace.engine.policies.protocol import Moves, PolicyError, Shape
from headrace.engine.policies.recency import Lru
from headrace.engine.policies.registry import BOX, Known, make
from headrace.engine.policies.replay import fast
from headrace.engine.policies.replay.choices import Choices, counts_of, of_batches
from headrace.engine.policies.replay.replay import Rates, Replayed, replay

RATES = Rates(cpu=3e8, link=1e8, gpu=9e8, fixed_s=1e-4, store=4e8)
OTHERS = (replace(RATES, in_turn=True), replace(RATES, ram=3.5e8), replace(RATES, ram=1e8))


def skewed(tokens: int, shape: Shape, top_k: int, seed: int) -> Any:
    """Ids of tokens whose favourites drift slowly."""
    generator = np.random.default_rng(seed)
    ids = np.empty((tokens, shape.layers, top_k), np.int16)
    for layer, count in enumerate(shape.experts):
        odds = 1.0 / np.arange(1, count + 1)
        for token in range(tokens):
            noise = generator.gumbel(size=count) + np.log(np.roll(odds, token // 40))
            ids[token, layer] = np.argsort(-noise)[:top_k]
    return ids


def both(
    name: str, shape: Shape, budget: int, choices: Choices, counts: Any, rates: Rates = RATES
) -> tuple[Replayed, Replayed]:
    """In C++, and in Python; a second GPU holds a sixth of all experts."""
    known = Known(counts=counts, future=choices, fetched=[0, 0, 1, 2, 2], store_bytes=shape.nbytes // 6)
    slow = replay(make(name, known), shape, budget, choices, tokens=choices.tokens, rates=rates)
    return fast.replayed(make(name, known), shape, budget, choices, rates), slow


def test_all_of_the_box_are_in_it() -> None:
    known = Known(counts=[], future=[], fetched=[0], store_bytes=1)
    assert {type(make(name, known)) for name in BOX} == set(fast.KINDS)


@pytest.mark.parametrize("name", BOX)
@pytest.mark.parametrize("batch", [1, 4])
def test_the_same_to_the_count(name: str, batch: int) -> None:
    shape = Shape((16, 24, 16), (10, 10, 30))
    ids = skewed(300, shape, 3, seed=batch)
    choices = of_batches(ids, batch)
    for share in (0.0, 0.1, 0.35, 0.8, 1.0):
        quick, slow = both(name, shape, int(share * shape.nbytes), choices, counts_of(ids, shape))
        assert quick.counts == slow.counts, share
        assert quick.seconds == pytest.approx(slow.seconds)
        for rates in OTHERS:
            quick, slow = both(name, shape, int(share * shape.nbytes), choices, counts_of(ids, shape), rates)
            assert quick.seconds == pytest.approx(slow.seconds)
        assert (quick.policy, quick.passes, quick.tokens) == (slow.policy, slow.passes, slow.tokens)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_the_same_on_odd_traces(data: st.DataObject) -> None:
    experts = data.draw(st.lists(st.integers(3, 7), min_size=1, max_size=3))
    shape = Shape(tuple(experts), (7, 20, 11)[: len(experts)])
    tokens = data.draw(st.integers(1, 25))
    rows = [[data.draw(st.permutations(range(count)))[:3] for count in shape.experts] for _ in range(tokens)]
    choices = of_batches(np.array(rows), data.draw(st.integers(1, 3)))
    budget = data.draw(st.integers(0, shape.nbytes))
    for name in BOX:
        quick, slow = both(name, shape, budget, choices, counts_of(np.array(rows), shape))
        assert quick.counts == slow.counts, name


def test_counts_are_scaled_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short age, so that they grow out of bounds many times."""
    monkeypatch.setattr(frequency, "AGE", 2)
    monkeypatch.setattr(recency, "WINDOW", 3)
    shape = Shape((12, 12), (10, 10))
    ids = skewed(600, shape, 2, seed=9)
    for name in ("lfu", "classes", "admit2"):
        quick, slow = both(name, shape, 80, of_batches(ids), None)
        assert quick.counts == slow.counts, name


def test_a_policy_of_ones_own_goes_by_its_python() -> None:
    class Mine(Lru):
        name = "mine"

        def layer(self, asked: Any) -> Moves:
            return Moves()

    shape = Shape((8,), (10,))
    choices = of_batches(np.array([[[5]], [[0]]]))
    found = fast.replayed(Mine(), shape, 20, choices)
    assert (found.policy, found.counts.hits, found.counts.on_cpu, found.seconds) == ("mine", 1, 1, None)


def test_a_start_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Uniform, "start", lambda self, shape, budget: [(0, 0), (0, 1)])
    with pytest.raises(PolicyError, match="policy uniform has 20 bytes of experts resident at the start, of 10"):
        fast.replayed(Uniform(), Shape((8,), (10,)), 10, of_batches(np.array([[[5]]])))


def test_what_follows_is_counted_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """More ahead than fits, and none."""
    shape = Shape((12, 10, 14), (10, 20, 10))
    ids = skewed(400, shape, 3, seed=5)
    for followers in (0, 1, 9):
        monkeypatch.setattr(ahead, "FOLLOWERS", followers)
        for batch in (1, 3):
            quick, slow = both("next-layer", shape, 150, of_batches(ids, batch), None)
            assert quick.counts == slow.counts, followers
            assert bool(quick.counts.prefetched) == bool(quick.counts.early) == bool(followers)


@pytest.mark.alone
def test_it_is_many_times_as_fast() -> None:
    shape = Shape((64,) * 8, (10,) * 8)
    choices = of_batches(skewed(1500, shape, 8, seed=3))
    policy, took = Lru(), []
    for run in (fast.replayed, lambda *args: replay(*args, tokens=choices.tokens)):
        start = time.perf_counter()
        run(policy, shape, shape.nbytes // 4, choices)
        took.append(time.perf_counter() - start)
    assert took[0] * 20 < took[1], took
