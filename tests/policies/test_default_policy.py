"""What is done where nobody said where experts lie, and a policy that learns while the model runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import stand_in_gpu
from cached import load, made, recorded, say

from headrace import LLM, SamplingParams
from headrace.engine.bandwidth_model.profile import Profile
from headrace.engine.core.experts import default_policy, expert_policy
from headrace.engine.cuda_graphs import signals, verify
from headrace.engine.cuda_graphs.saved_trials import StepTimes
from headrace.engine.cuda_graphs.signals import VARIANTS, Trial
from headrace.engine.experts.cache import report
from headrace.engine.planning.replays import Replays
from headrace.engine.policies.between import Learning, Resizable, Switch, take_in
from headrace.engine.policies.protocol import Asked, Shape
from headrace.engine.policies.recency import Lru
from headrace.engine.policies.replay import learner
from headrace.engine.policies.replay.learner import Learner
from headrace.engine.policies.replay.replay import Rates, replay
from headrace.engine.policies.residents import Residents
from headrace.engine.terminal import generate_report
from headrace.engine.traces import stored

SMALL = {"prefill_chunk": 64, "max_sequences": 4}
LINE = Shape((8,), (10,))
Of = tuple[list[list[int]], Replays]
TRIED = {name: Trial(name=name, us=us) for name, us in zip(VARIANTS, (5.0, 60.0, 9.0, 3.0), strict=True)}


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> Of:
    return recorded(tmp_path_factory.mktemp("traces") / "run.trace", 1)


@pytest.fixture
def fast_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates of a GPU beside a slow CPU: one that is played shares the CPU's memory, so that no cache is of use."""
    rates = Rates(cpu=1e9, link=50e9, gpu=100e9)
    monkeypatch.setattr(expert_policy.Run, "rates", lambda run, others: rates)


# ---- nothing was said


def loaded(**options: Any) -> LLM:
    """All but the experts fits, and about 40 % of these."""
    return LLM(
        "demo", **{"device": "simulated", "max_context": 96, "vram_limit": 0.0105, "link_limit": 5, **SMALL, **options}
    )


def told(llm: LLM) -> str:
    return str(generate_report.startup_table(llm).title)


def test_without_a_trace_what_fits_is_there_for_good(profile: Profile, of: Of) -> None:
    with loaded() as llm:
        assert llm.parts.expert_cache is None
        assert llm.parts.placement.name.startswith("n-cpu-moe")
        assert "what fits is in VRAM for good: no trace is kept for demo" in told(llm)
        assert say(llm, 1) == of[0]


def test_without_rates_there_is_nothing_to_go_by(profile: Profile) -> None:
    with loaded(link_limit=None) as llm:
        assert llm.parts.memory_plan.why == ""
        assert llm.parts.expert_cache is None


@pytest.mark.parametrize(
    "options", [{"cpu_moe": True}, {"n_cpu_moe": "auto"}, {"placement": "auto"}, {"policy": "lru"}]
)
def test_what_was_said_is_done(options: dict[str, Any], profile: Profile, tmp_path: Path) -> None:
    keep(tmp_path)
    with loaded(**options) as llm:
        assert llm.parts.memory_plan.why == ""
        assert (llm.parts.expert_cache is None) == ("policy" not in options)


def keep(folder: Path) -> None:
    """A trace of the model."""
    with load(None, trace=folder / "run.trace", max_sequences=1) as llm:
        llm.generate(["In the beginning"], SamplingParams(max_new_tokens=64, ignore_eos=True))
    stored.keep(folder / "run.trace", move=False)


@pytest.mark.parametrize("gain", [0.03, 99.0])
def test_with_a_trace_a_replay_decides(
    gain: float, profile: Profile, fast_gpu: None, tmp_path: Path, of: Of, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default_policy.best_policy, "GAIN", gain)
    keep(tmp_path)
    with loaded(link_limit=50) as llm:
        cache, why = llm.parts.expert_cache, llm.parts.memory_plan.why
        assert "tokens/s are predicted of a cache by" in why
        assert why in told(llm)
        assert (cache is not None) == (gain < 1)
        assert why.startswith("what fits is in VRAM for good" if cache is None else "a cache in VRAM was chosen")
        assert say(llm, 1) == of[0]


def test_a_cache_takes_all_experts_in_ram(profile: Profile, tmp_path: Path) -> None:
    keep(tmp_path)
    with loaded(ram_limit=0.0225) as llm:
        assert llm.parts.expert_cache is None
        assert "a cache takes all experts in RAM, which does not hold them" in told(llm)


# ---- what learns


class Lookout:
    """A successor after so many passes, which is noted."""

    def __init__(self, passes: int, of: Replays, name: str = "lru") -> None:
        self.of, self.name, self.seen = of, name, list[int]()
        self.learner = Learner(self.better)
        self.learner.looks = [passes]

    def better(self, choices: Any, budget: int) -> Any:
        self.seen += [choices.passes, budget]
        same = [list(map(tuple, one)) for one in self.of.choices][: choices.passes]
        assert list(choices) == same
        return made(self.name, self.of)


@pytest.mark.parametrize("name", ["lru", "frequency", "classes", "next-layer"])
@pytest.mark.parametrize("graphs", [False, True])
def test_another_policy_takes_over(
    name: str, graphs: bool, of: Of, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two passes: the same tokens, and the counts of a replay with the same switch."""
    if graphs:
        monkeypatch.setattr(signals, "probe", lambda *_: TRIED)
        monkeypatch.setattr(verify, "_time", lambda *_: StepTimes(graph_s=0.003, eager_s=0.004))
        request.getfixturevalue("log")
        stand_in_gpu.install(monkeypatch, request.getfixturevalue("library"))
    lookout = Lookout(30, of[1], name)
    with load(lookout.learner, expert_cache="40%") as llm:
        cache = llm.parts.expert_cache
        assert cache is not None
        assert (llm.parts.graphed is not None) == graphs
        assert say(llm, 1) == of[0]
        cache.begin(0)
        assert lookout.seen == [30, cache.budget]
        assert cache.policy.name == name
        (step,) = cache.events
        assert step == (31 if graphs else 30), "as a graph a pass is asked about one later"
        assert f"({cache.switched})" in report.so_far(cache)
        assert cache.switched == f"uniform until pass {step}"
        events = {step: [Switch(made(name, of[1]))]}
        wanted = replay(
            made("uniform", of[1]), of[1].shape, cache.budget, of[1].choices, tokens=1, late=graphs, events=events
        )
        assert cache.counts == wanted.counts
        assert cache.counts.fetched + cache.counts.admitted + cache.counts.prefetched > 0


def test_it_looks_twice_and_then_no_more() -> None:
    looked: list[int] = []

    def better(choices: Any, budget: int) -> None:
        looked.append(choices.passes)

    policy = Learner(better)
    assert isinstance(policy, Learning)
    assert isinstance(policy, Resizable)
    policy.start(LINE, 40)
    first, last = learner.LOOKS
    for step in range(last + 10):
        assert policy.successor() is None
        policy.layer(Asked(step, 0, (step % 8,), [set()], 0))
    assert looked == [first, last]
    assert policy.chosen == []


def test_what_was_resident_is_taken_over() -> None:
    there = Residents(Lru(), LINE, 30)
    there.layer(0, 0, (5, 6))
    assert there.by_layer == [{0, 5, 6} if 0 in there.by_layer[0] else {2, 5, 6}]
    before = set(there.by_layer[0])
    take_in(there, 1, Switch(Lru()))
    assert there.by_layer == [before], "lru goes on with what it finds"


def test_auto_learns(profile: Profile, fast_gpu: None, of: Of, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the run's own routing, by the rates of the machine."""
    monkeypatch.setattr(learner, "LOOKS", (24, 48))
    with load("auto", expert_cache="40%", link_limit=50) as llm:
        cache = llm.parts.expert_cache
        assert cache is not None
        assert isinstance(cache.policy, Learner)
        assert f"{expert_policy.LOOKS[0]} passes" in cache.why[0]
        assert say(llm, 1) == of[0]
        assert cache.policy.name != "uniform"
        assert cache.switched.startswith("uniform until pass ")
