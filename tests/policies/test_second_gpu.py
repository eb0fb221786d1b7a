"""Experts in a second GPU's memory: who lies where, what is counted, the article's case, and when it is not useless."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import OptionError
from headrace.engine.planning import articles
from headrace.engine.policies.fixed import AllInRam, Fixed
from headrace.engine.policies.optimum import Belady
from headrace.engine.policies.protocol import Asked, Key, Moves, PolicyError, Shape
from headrace.engine.policies.replay import fast
from headrace.engine.policies.replay.choices import of_batches
from headrace.engine.policies.replay.replay import Rates, Replayed, replay
from headrace.engine.policies.residents import Residents
from headrace.engine.policies.second_gpu import SecondGpu
from headrace.engine.traces import synthetic

GB = 1e9


def both(policy: SecondGpu, shape: Shape, budget: int) -> tuple[set[Key], set[Key]]:
    """Who lies on the first GPU and on the second."""
    return set(policy.start(shape, budget)), set(policy.store())


# ---- by hand


def test_the_second_gpu_has_the_next_hottest() -> None:
    """By choices a byte: 0.9 (layer 1, expert 0), 0.5, 0.4, 0.3, 0.2 (layer 1, expert 1) ..."""
    shape, counts = Shape((3, 2), (10, 20)), [[5.0, 3.0, 4.0], [18.0, 4.0]]
    assert both(SecondGpu(20, counts), shape, 30) == ({(1, 0), (0, 0)}, {(0, 2), (0, 1)})
    assert both(SecondGpu(35, counts), shape, 0) == (set(), {(1, 0), (0, 0)})
    assert both(SecondGpu(10**6, counts), shape, 10) == ({(0, 0)}, {(0, 1), (0, 2), (1, 0), (1, 1)})
    assert both(SecondGpu(0, counts), shape, 20) == ({(1, 0)}, set())


def test_without_counts_both_have_a_share_of_every_layer() -> None:
    shape = Shape((4, 3), (10, 10))
    assert both(SecondGpu(20), shape, 40) == ({(0, 0), (0, 1), (1, 0), (1, 1)}, {(0, 2), (1, 2)})
    assert both(SecondGpu(30), shape, 0) == (set(), {(0, 0), (1, 0), (0, 1)})


def test_what_the_second_gpu_computes_is_counted_apart() -> None:
    """Expert 0 is on the first, 1 on the second, 2 with the CPU; a byte a second, but for the store's two."""
    shape, counts = Shape((3,), (10,)), [[3.0, 2.0, 1.0]]
    trace = [[(0, 1, 2)], [(1,)], [(0, 2)]]
    rates = Rates(cpu=1.0, link=1.0, gpu=1.0, store=2.0)
    took = replay(SecondGpu(10, counts), shape, 10, trace, tokens=3, rates=rates)
    found = took.counts
    assert (found.hits, found.store_hits, found.on_cpu, found.choices) == (2, 2, 2, 6)
    assert (found.gpu_bytes, found.store_bytes, found.cpu_bytes, found.link_bytes) == (20, 20, 20, 0)
    assert (found.hit_rate, found.store_rate) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert took.seconds == 10 + 5 + 10  # at the same time: the longest of each pass
    in_turn = Rates(cpu=1.0, link=1.0, gpu=1.0, store=2.0, in_turn=True)
    assert replay(SecondGpu(10, counts), shape, 10, trace, tokens=3, rates=in_turn).seconds == 25 + 5 + 20


class Fetches(Fixed):
    """Brings what is missing, though the second GPU has it."""

    name = "odd"
    store_bytes = 10

    def __init__(self, *stored: Key) -> None:
        self.stored = stored

    def start(self, shape: Shape, budget: int) -> Iterable[Key]:
        return ()

    def store(self) -> Iterable[Key]:
        return self.stored

    def layer(self, asked: Asked) -> Moves:
        return Moves(fetch=tuple(asked.missing[:1]))


def test_one_that_comes_is_computed_on_the_first() -> None:
    moves, took = Residents(Fetches((0, 1)), Shape((3,), (10,)), 10).layer(0, 0, (1, 2))
    assert (moves.fetch, took.store_hits, took.fetched, took.on_cpu) == ((1,), 0, 1, 1)
    assert (took.gpu_bytes, took.cpu_bytes, took.store_bytes) == (10, 10, 0)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ([(0, 3)], "stores expert 3 of layer 0, which there is not"),
        ([(1, 0)], "stores expert 0 of layer 1, which there is not"),
        ([(0, 0), (0, 0)], "stores expert 0 of layer 0 twice"),
        ([(0, 0), (0, 1)], "stores 20 bytes of experts, of 10 that it may"),
    ],
)
def test_what_cannot_be_stored_is_refused(stored: list[Key], message: str) -> None:
    with pytest.raises(PolicyError, match=f"policy odd {message}"):
        Residents(Fetches(*stored), Shape((3,), (10,)), 10)


def test_a_second_gpu_without_a_rate_is_refused() -> None:
    shape, choices = Shape((3,), (10,)), of_batches(np.array([[[1]]]))
    for run in (fast.replayed, lambda *args: replay(*args[:4], tokens=1, rates=args[4])):
        with pytest.raises(OptionError, match="policy 'second-gpu' needs the rate of a second GPU"):
            run(SecondGpu(10), shape, 10, choices, Rates(cpu=1.0, link=1.0, gpu=1.0))
        assert run(SecondGpu(0), shape, 10, choices, Rates(cpu=1.0, link=1.0, gpu=1.0)).counts.on_cpu == 1


# ---- the optimum


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 12), st.integers(0, 12), st.booleans())
def test_both_gpus_together_hit_no_more_than_the_optimum_with_both_memories(
    data: st.DataObject, first: int, second: int, is_counted: bool
) -> None:
    rows = [[data.draw(st.permutations(range(5)))[:2] for _ in range(3)] for _ in range(data.draw(st.integers(1, 25)))]
    shape, choices = Shape((5, 5, 5), (10, 10, 10)), of_batches(np.array(rows), data.draw(st.integers(1, 3)))
    policy = SecondGpu(10 * second, choices.counts(shape.experts) if is_counted else None)
    took = fast.replayed(policy, shape, 10 * first, choices).counts
    best = fast.replayed(Belady(choices), shape, 10 * (first + second), choices).counts
    assert took.hits + took.store_hits <= best.hits
    assert took.choices == took.hits + took.store_hits + took.on_cpu == best.choices
    assert (took.store_bytes, took.link_bytes, took.fetched) == (10 * took.store_hits, 0, 0)


# ---- the article's case: Kimi K2, 16 GB a token at 4 bits, 36 % of them common, RTX 3090 and EPYC 9005

SECONDS_OF_COMMON = 16 * GB * 0.36 / (935 * GB)


def of_the_article(kind: str, counted: bool, tokens: int = 400) -> tuple[Replayed, Replayed]:
    """Without a second RTX 3090, and with 4 % of the experts on it, on the second half of a trace of such routing. 384
    experts a layer, 8 a token, in 10 layers that have the bytes of all; counted: by the first half."""
    drawn = synthetic.draw(kind, layers=10, experts=384, top_k=8, tokens=tokens, seed=3)
    choices = of_batches(np.concatenate(list(drawn)))
    learned, tried = choices.between(0, tokens // 2), choices.between(tokens // 2, tokens)
    shape = Shape((384,) * 10, (int(16 * GB * 0.64 / 80),) * 10)
    counts = learned.counts(shape.experts) if counted else None
    rates = Rates(
        cpu=409 * GB, link=25 * GB, gpu=935 * GB, store=935 * GB, fixed_s=SECONDS_OF_COMMON, in_turn=True
    )  # fmt: skip
    policies: Any = (AllInRam(), SecondGpu(int(0.04 * shape.nbytes), counts))
    none, some = (fast.replayed(policy, shape, 0, tried, rates) for policy in policies)
    return none, some


@pytest.mark.parametrize("counted", [False, True])
def test_with_uniform_routing_a_second_gpu_is_useless(counted: bool) -> None:
    """Its 4 % of the experts are 4 % of the lookups, and half a token a second, whoever chooses them."""
    none, some = of_the_article("uniform", counted)
    article = 1 / articles.seconds_per_token(32e9, 4, 0.36, 935 * GB, 409 * GB)
    second = 1 / articles.seconds_per_token(
        32e9, 4, 0.36, 935 * GB, 409 * GB, second_share=0.04, second=935 * GB
    )  # fmt: skip
    assert none.tokens_per_s == pytest.approx(article, rel=1e-6) == pytest.approx(32.05, abs=0.01)
    assert some.counts.store_rate == pytest.approx(0.04, abs=0.003)
    assert some.tokens_per_s == pytest.approx(second, abs=0.06)
    assert second - article == pytest.approx(0.59, abs=0.01)


def test_with_skewed_routing_it_is_not() -> None:
    """By Zipf's law the hottest 4 % are two fifths of the lookups; by share of every layer they are still 4 %."""
    none, some = of_the_article("zipf", counted=True)
    assert some.counts.store_rate > 0.3
    assert none.tokens_per_s
    assert some.tokens_per_s
    assert some.tokens_per_s > 1.15 * none.tokens_per_s
    assert of_the_article("zipf", counted=False)[1].counts.store_rate < 0.08
