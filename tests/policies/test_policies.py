"""Policies on small cases that can be computed by hand, against each other and against the optimum on random traces,
and what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import OptionError
from headrace.engine.policies import recency
from headrace.engine.policies.ahead import NextLayer, Split
from headrace.engine.policies.fixed import Frequency, Uniform
from headrace.engine.policies.frequency import AGE, AgedLfu, Classes
from headrace.engine.policies.optimum import Belady
from headrace.engine.policies.protocol import NOTHING, Asked, Key, Moves, PolicyError, Shape
from headrace.engine.policies.recency import AdmitOnSecondMiss, Lru, SegmentedLru
from headrace.engine.policies.registry import BOX, Known, make, names
from headrace.engine.policies.replay.choices import counts_of, of_batches, of_passes
from headrace.engine.policies.replay.replay import Rates, replay
from headrace.engine.policies.residents import Counts, Residents

Trace = list[list[tuple[int, ...]]]
ONE = Shape((8,), (10,))  # one layer of 8 experts of 10 bytes


def alone(*chosen: int) -> Trace:
    """Passes of one layer that choose one expert each."""
    return [[(expert,)] for expert in chosen]


def counts(policy: Any, trace: Trace, slots: int, shape: Shape = ONE) -> Counts:
    return replay(policy, shape, slots * shape.expert_bytes[0], trace, tokens=len(trace)).counts


# ---- by hand


def test_lru_lets_the_oldest_leave() -> None:
    """0 and 1 are there; 2 takes the place of 1, which was never used: 0 stays, and 1 comes back for 2."""
    residents = Residents(Lru(), ONE, 20)
    said = [residents.layer(step, 0, (expert,))[0] for step, expert in enumerate([0, 2, 0, 1, 2])]
    assert [moves.fetch for moves in said] == [(), (2,), (), (1,), (2,)]
    assert [moves.evict for moves in said] == [(), ((0, 1),), (), ((0, 2),), ((0, 0),)]
    assert residents.by_layer == [{1, 2}]


def test_what_is_chosen_now_never_leaves_before_it_is_used() -> None:
    """Three missing ones and two slots, of which one is chosen: one of them comes."""
    residents = Residents(Lru(), ONE, 20)
    moves, took = residents.layer(0, 0, (1, 4, 5, 6))
    assert (moves.fetch, moves.evict) == ((4,), ((0, 0),))
    assert (took.hits, took.fetched, took.on_cpu, took.evicted) == (1, 1, 2, 1)
    assert (took.gpu_bytes, took.link_bytes, took.cpu_bytes) == (20, 10, 20)


def test_lfu_keeps_what_was_chosen_often() -> None:
    """0 was chosen three times, 1 once and later: 1 leaves, where lru would let 0 go."""
    trace = alone(0, 0, 0, 1, 2, 0)
    assert counts(AgedLfu(), trace, 2).hits == 5
    assert counts(Lru(), trace, 2).hits == 4


def test_lfu_forgets() -> None:
    """Chosen four times at the start is less than three times two ages later."""
    early, late = [0] * 4, [1] * 3
    trace = alone(*early, *[7] * (3 * AGE), *late, 2)
    policy = AgedLfu()
    residents = Residents(policy, ONE, 30)
    for step, (chosen,) in enumerate(trace):
        residents.layer(step, 0, chosen)
    assert policy.counts[0, 1] > policy.counts[0, 0]
    assert residents.by_layer == [{1, 2, 7}]


def test_counts_that_grow_are_scaled_before_they_overflow() -> None:
    policy = AgedLfu()
    residents = Residents(policy, ONE, 20)
    for step in range(0, 400 * AGE, AGE // 4):
        residents.layer(step, 0, (step // AGE % 2,))
    assert max(policy.counts.values()) < 2.0**70


def test_slru_protects_what_was_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """0 was used twice, long ago; a run of new ones passes by it."""
    monkeypatch.setattr(recency, "PROTECTED", 0.5)
    trace = alone(0, 0, 2, 3, 4, 5, 0)
    assert counts(SegmentedLru(), trace, 2).hits == 3
    assert counts(Lru(), trace, 2).hits == 2


def test_admit2_waits_for_the_second_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    took = counts(AdmitOnSecondMiss(), alone(5, 6, 5, 5, 6), 2)
    assert (took.hits, took.fetched, took.on_cpu) == (1, 2, 2)
    monkeypatch.setattr(recency, "WINDOW", 1)
    took = counts(AdmitOnSecondMiss(), alone(5, 6, 5, 5, 6), 2)
    assert (took.hits, took.fetched, took.on_cpu) == (0, 1, 4)  # 5 comes at its third miss, right behind its second


def test_classes_leave_seldom_ones_to_the_cpu() -> None:
    """1 and 0 were chosen four times each; 2, 3 and 4 once. lru would let both go."""
    trace = alone(*[0, 1] * 4, 2, 3, 4, 0, 1)
    took = counts(Classes(), trace, 2)
    assert (took.hits, took.fetched, took.on_cpu) == (10, 0, 3)
    assert counts(Lru(), trace, 2).hits == 8


def test_next_layer_brings_what_followed() -> None:
    """Whenever the first layer chooses 6, the second one chooses 7. From the second time on it is there."""
    shape = Shape((8, 8), (10, 10))
    there = [(6,), (7,)]
    away = [(0,), (1,)]
    trace = [there, *[away] * 6, [(0,), (2,)], [(0,), (3,)], there, there]
    took = counts(NextLayer(), trace, 4, shape)
    assert took.prefetched >= 1
    assert took.early >= 1
    assert took.hits + took.early > counts(Lru(), trace, 4, shape).hits


def test_split_brings_as_many_as_its_table_says() -> None:
    """Of two missing ones one, of one none; the one that was used before."""
    residents = Residents(Split([0, 0, 1]), ONE, 20)
    assert residents.layer(0, 0, (5,))[0].fetch == ()
    assert residents.layer(1, 0, (4, 5))[0].fetch == (5,)
    assert residents.layer(2, 0, (2, 3, 6))[1].on_cpu == 2


def test_slots_are_even_and_use_the_bytes() -> None:
    assert Shape((4, 4), (10, 10)).slots(55) == [3, 2]
    assert Shape((1, 4), (10, 10)).slots(40) == [1, 3]
    assert Shape((4, 0, 4), (10, 10, 30)).slots(130) == [4, 0, 3]
    assert Shape((4, 4), (10, 10)).slots(10**6) == [4, 4]
    assert Shape((4, 4), (10, 10)).slots(9) == [0, 0]


def test_policies_that_never_move() -> None:
    shape = Shape((2, 2, 2), (10, 20, 10))
    assert set(make("all-ram", Known()).start(shape, 100)) == set()
    assert set(make("first-layers", Known()).start(shape, 65)) == {(2, 0), (2, 1), (1, 0), (1, 1)}
    assert set(Uniform().start(shape, 45)) == {(0, 0), (1, 0), (2, 0)}
    often = Frequency([[1, 5], [9, 8], [4, 0]])
    assert set(often.start(shape, 40)) == {(0, 1), (1, 0), (2, 0)}  # 0.5, 0.45 and 0.4 choices a byte, and 0.4


# ---- the optimum


def best_hits(trace: Trace, slots: int, layers: int, experts: int) -> int:
    """By trying all: residents before every layer of every pass; choices that come do so behind it."""
    keys = [(layer, expert) for layer in range(layers) for expert in range(experts)]
    known = {frozenset(start): 0 for n in range(slots + 1) for start in combinations(keys, n)}
    for step in trace:
        for layer, chosen in enumerate(step):
            asked = frozenset((layer, expert) for expert in chosen)
            after: dict[frozenset[Key], int] = {}
            for there, hits in known.items():
                may = there | asked
                now = hits + len(there & asked)
                for n in range(min(slots, len(may)) + 1):
                    for kept in combinations(sorted(may), n):
                        after[frozenset(kept)] = max(after.get(frozenset(kept), 0), now)
            known = after
    return max(known.values())


@st.composite
def traces(draw: st.DrawFn, layers: int = 2, experts: int = 3, top_k: int = 2, most: int = 6) -> Trace:
    chosen = st.lists(st.integers(0, experts - 1), min_size=1, max_size=top_k, unique=True)
    steps = draw(st.lists(st.lists(chosen, min_size=layers, max_size=layers), min_size=1, max_size=most))
    return [[tuple(sorted(row)) for row in step] for step in steps]


@settings(max_examples=40, deadline=None)
@given(traces(), st.integers(0, 4))
def test_belady_is_the_best_of_all(trace: Trace, slots: int) -> None:
    shape = Shape((3, 3), (10, 10))
    assert counts(Belady(trace), trace, slots, shape).hits == best_hits(trace, slots, 2, 3)


def every(trace: Trace, shape: Shape) -> list[Any]:
    ids = [
        [sum(expert in step[layer] for step in trace) for expert in range(n)] for layer, n in enumerate(shape.experts)
    ]
    known = Known(counts=ids, future=trace, fetched=[0, 0, 1, 1, 2], store_bytes=40)
    return [make(name, known) for name in BOX]


@settings(max_examples=60, deadline=None)
@given(traces(layers=3, experts=6, top_k=3, most=40), st.integers(0, 18))
def test_no_policy_beats_the_optimum(trace: Trace, slots: int) -> None:
    shape = Shape((6, 6, 6), (10, 10, 10))
    best = counts(Belady(trace), trace, slots, shape)
    chosen = sum(len(row) for step in trace for row in step)
    for policy in every(trace, shape):
        took = counts(policy, trace, slots, shape)
        assert took.hits <= best.hits, policy.name
        assert took.choices == chosen, policy.name
        assert took.gpu_bytes + took.cpu_bytes + took.store_bytes == 10 * chosen, policy.name
        assert took.link_bytes == 10 * (took.fetched + took.admitted + took.prefetched), policy.name


@settings(max_examples=40, deadline=None)
@given(traces(layers=3, experts=6, top_k=3, most=30), st.integers(0, 700))
def test_experts_of_several_sizes_stay_within_the_budget(trace: Trace, budget: int) -> None:
    """`Residents` refuses what does not fit; nothing is left to refuse."""
    shape = Shape((6, 6, 6), (10, 25, 70))
    for policy in every(trace, shape):
        found = replay(policy, shape, budget, trace, tokens=len(trace))
        assert found.counts.choices == sum(len(row) for step in trace for row in step)


# ---- what is refused


class Says:
    """A policy that says one thing."""

    name = "odd"

    def __init__(self, moves: Any = NOTHING, start: Any = ((0, 0),)) -> None:
        self.moves, self.at_start = moves, start

    def start(self, shape: Shape, budget: int) -> Iterable[Key]:
        return self.at_start  # type: ignore[no-any-return]

    def layer(self, asked: Asked) -> Moves:
        return self.moves  # type: ignore[no-any-return]


class Fails(Says):
    """A policy with a mistake in it."""

    def layer(self, asked: Asked) -> Moves:
        return {}["nothing"]  # type: ignore[no-any-return]


class Yields(Says):
    """One whose mistake is in code that runs when its answer is read."""

    def start(self, shape: Shape, budget: int) -> Iterable[Key]:
        yield 0, 1
        yield {}["nothing"]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Says(start=[(0, 0), (0, 1), (0, 2)]), "has 30 bytes of experts resident at the start, of 20"),
        (Says(start=[(0, 8)]), "brings expert 8 of layer 0, which there is not"),
        (Says(start=[(1, 0)]), "brings expert 0 of layer 1, which there is not"),
        (Says(start=[(0, 0), (0, 0)]), "brings expert 0 of layer 0, which is resident"),
        (Says(Moves(fetch=(0,))), r"fetches \[0\], and \[3, 4\] are missing"),
        (Says(Moves(fetch=(3,), admit=(3,))), r"fetches \[3, 3\]"),
        (Says(Moves(fetch=(3, 4))), "has 30 bytes of experts resident while it fetches"),
        (Says(Moves(admit=(3, 4))), "has 30 bytes of experts resident when the layer is done"),
        (Says(Moves(evict=((0, 5),))), "evicts expert 5 of layer 0, not resident"),
        (Says(Moves(evict=((3, 5),))), "evicts expert 5 of layer 3, not resident"),
        (Says(Moves(prefetch=((0, 0),))), "brings expert 0 of layer 0, which is resident"),
        (Says(None), r"answers None at layer 0 of pass 0: give a Moves, Moves\(\) is to do nothing"),
        (Says([3]), r"answers \[3\] at layer 0 of pass 0: give a Moves, as Moves\(fetch=\(3,\)"),
        (Says(Moves(fetch=3)), r"answers fetch=3 at layer 0 of pass 0: give numbers of experts, as \(3,\)"),
        (Says(Moves(fetch=("3",))), r"answers fetch=\('3',\) at"),
        (Says(Moves(fetch=((0, 3),))), r"answers fetch=\(\(0, 3\),\) at"),
        (Says(Moves(evict=(0,))), r"answers evict=\(0,\) at layer 0 of pass 0: give pairs"),
        (Says(start=None), "says None at the start: give pairs of a layer and an expert"),
        (Says(start=[0, 1]), r"says \[0, 1\] at the start: give pairs"),
        (Yields(), r"failed at the start: KeyError: 'nothing' \(line \d+ of test_policies.py\)"),
        (Fails(), r"failed at layer 0 of pass 0: KeyError: 'nothing' \(line \d+ of test_policies.py\)"),
    ],
)
def test_an_answer_that_cannot_be_carried_out_is_named(policy: Says, message: str) -> None:
    with pytest.raises(PolicyError, match=f"policy odd {message}"):
        Residents(policy, ONE, 20).layer(0, 0, (0, 3, 4))


def test_one_that_is_chosen_may_leave_behind_the_layer() -> None:
    residents = Residents(Says(Moves(admit=(3,), evict=((0, 0),))), ONE, 10)
    _, took = residents.layer(0, 0, (0, 3))
    assert (took.hits, took.on_cpu, took.admitted, residents.by_layer) == (1, 1, 1, [{3}])
    with pytest.raises(PolicyError, match="resident while it fetches"):
        Residents(Says(Moves(fetch=(3,), evict=((0, 0),))), ONE, 10).layer(0, 0, (0, 3))


def test_policies_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name, value = "mine", "mine.policies:mine"

        def load(self) -> Any:
            return lambda known: Says() if known.counts else 1 / 0

    monkeypatch.setattr("headrace.engine.policies.registry.entry_points", lambda group: [Point()])
    assert names() == [*BOX, "mine"]
    assert make("mine", Known(counts=[[1.0]])).name == "odd"
    with pytest.raises(OptionError, match=r"'mine' of mine.policies:mine cannot be made \(ZeroDivisionError"):
        make("mine", Known())
    monkeypatch.setattr(Point, "load", lambda self: lambda known: object())
    with pytest.raises(
        OptionError, match=r"'mine' of mine.policies:mine is of type object, without name and start and layer"
    ):
        make("mine", Known())
    with pytest.raises(OptionError, match="there is no policy 'mru': take one of all-ram, first-layers"):
        make("mru", Known())
    for name, needs in (
        ("frequency", "give a trace"), ("belady", "the future"), ("split", "run headrace measure"),
        ("second-gpu", "give --second-vram"),
    ):  # fmt: skip
        with pytest.raises(OptionError, match=f"policy '{name}' needs .*{needs}"):
            make(name, Known())
    for name in BOX:
        assert make(name, Known(counts=[[1.0]], future=[], fetched=[0], store_bytes=1)).name == name


def test_a_policy_named_as_one_of_the_box_is_said_to_be_unused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looked: list[str] = []

    class Point:
        name, value = "lru", "mine.policies:faster_lru"

        def load(self) -> Any:
            raise AssertionError("it was loaded")

    monkeypatch.setattr(
        "headrace.engine.policies.registry.entry_points", lambda group: looked.append(group) or [Point()]
    )
    for _ in range(3):
        assert type(make("lru", Known())) is type(BOX["lru"](Known()))
        assert make("lfu", Known()).name == "lfu"
    said = "policy 'lru' of mine.policies:faster_lru is not used: headrace has one of that name; rename its entry point"
    assert caplog.messages == [said], "once for each"
    assert names() == [*BOX]
    assert looked == ["headrace.policies"]


# ---- replay


def test_a_trace_in_passes() -> None:
    ids = np.array([[[3, 1], [0, 2]], [[1, 2], [0, 2]], [[5, 0], [7, 2]]])
    assert list(of_batches(ids, 2)) == [[(1, 2, 3), (0, 2)], [(0, 5), (2, 7)]]
    assert list(of_batches(ids)) == [[(1, 3), (0, 2)], [(1, 2), (0, 2)], [(0, 5), (2, 7)]]
    assert list(of_passes(ids, np.array([4, 9, 9]))) == [[(1, 3), (0, 2)], [(0, 1, 2, 5), (0, 2, 7)]]
    assert (of_batches(ids, 2).passes, of_batches(ids, 2).tokens) == (2, 3)
    assert counts_of(ids, Shape((8, 8), (1, 1)))[1] == [2, 0, 3, 0, 0, 0, 0, 1]
    ids[1, 1] = -1  # did not go through the last layer
    assert list(of_batches(ids)) == [[(1, 3), (0, 2)], [(1, 2), ()], [(0, 5), (2, 7)]]
    assert counts_of(ids, Shape((8, 8), (1, 1)))[1] == [1, 0, 2, 0, 0, 0, 0, 1]


def test_seconds_by_rates() -> None:
    """One layer, a hit and a miss: fetched 10 bytes at 5 a second, then both read at 20; by the CPU 10 bytes at 2. What
    comes behind the layer costs time only where the link has none left."""
    rates = Rates(cpu=2.0, link=5.0, gpu=20.0, fixed_s=0.5)

    def seconds(moves: Moves) -> float | None:
        return replay(Says(moves), ONE, 20, [[(0, 3)]], tokens=4, rates=rates).seconds

    assert seconds(Moves(fetch=(3,))) == pytest.approx(10 / 5 + 20 / 20 + 0.5)
    assert seconds(Moves()) == pytest.approx(10 / 2 + 0.5)
    assert seconds(Moves(admit=(3,))) == pytest.approx(10 / 2 + 0.5)
    slow = Rates(cpu=2.0, link=1.0, gpu=20.0)
    found = replay(Says(Moves(admit=(3,))), ONE, 20, [[(0, 3)]], tokens=4, rates=slow)
    assert found.seconds == pytest.approx(10.0)
    assert found.tokens_per_s == pytest.approx(0.4)
    assert replay(Says(), ONE, 20, [[(0,)]], tokens=1).tokens_per_s is None


def test_cpu_and_link_read_one_ram() -> None:
    """Of two missing ones one comes at 5 bytes a second, the CPU takes 2 a second for the other, and RAM gives both
    together 4; behind a layer only what the pass leaves of it."""
    rates = Rates(cpu=2.0, link=5.0, gpu=20.0, ram=4.0)

    def seconds(moves: Moves, ram: float = 4.0) -> float | None:
        return replay(Says(moves), ONE, 30, [[(3, 4)]], tokens=1, rates=replace(rates, ram=ram)).seconds

    assert seconds(Moves(fetch=(3,))) == pytest.approx(10 / 2)
    assert seconds(Moves(fetch=(3,)), ram=2.5) == pytest.approx(20 / 2.5)
    assert seconds(Moves(fetch=(3, 4)), ram=2.5) == pytest.approx(20 / 2.5)
    assert seconds(Moves()) == pytest.approx(20 / 2)
    assert seconds(Moves(admit=(3, 4)), ram=2.5) == pytest.approx(40 / 2.5)
    assert seconds(Moves(admit=(3, 4)), ram=0.0) == pytest.approx(20 / 2)


def test_a_uniform_trace_makes_no_cache_worth_it_and_a_skewed_one_does() -> None:
    """24 of 600 GB of experts are 4 % of the lookups, whoever chooses them; of a skewed trace they are far more."""
    generator = np.random.default_rng(5)
    shape = Shape((64,) * 4, (10,) * 4)
    budget = int(0.04 * shape.nbytes)
    even = np.stack([[generator.permutation(64)[:4] for _ in range(4)] for _ in range(2000)])
    odds = 1.0 / np.arange(1, 65) ** 1.2
    skewed = np.stack(
        [[generator.choice(64, 4, replace=False, p=odds / odds.sum()) for _ in range(4)] for _ in range(2000)]
    )
    rates = {}
    for kind, ids in (("even", even), ("skewed", skewed)):
        for name in ("frequency", "lru", "lfu"):
            policy = make(name, Known(counts=counts_of(ids, shape)))
            rates[kind, name] = replay(policy, shape, budget, of_batches(ids), tokens=2000).counts.hit_rate
    assert all(0.02 < rates["even", name] < 0.06 for name in ("frequency", "lru", "lfu")), rates
    assert rates["skewed", "frequency"] > 0.2
    assert rates["skewed", "lfu"] > rates["even", "lfu"] * 3


def test_the_example_of_the_docs_runs() -> None:
    """As it stands there: what is chosen twice running comes, in the place of one that was not."""
    text = (Path(__file__).parents[2] / "docs/policies.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) <= 30
    there: dict[str, Any] = {}
    exec(code, there)
    took = counts(there["KeepTheRepeated"](), alone(5, 5, 5, 0, 1, 5), 2)
    assert (took.fetched, took.hits, took.on_cpu, took.evicted) == (1, 3, 2, 1)
