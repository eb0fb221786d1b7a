"""A policy that is told what a prompt chose: the engine and a replay tell it the same, and no token changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_in_gpu
from cached import PARAMS, PROMPTS, load, made, say

from headrace import LLM, OptionError
from headrace.engine.cuda_graphs import signals, verify
from headrace.engine.cuda_graphs.saved_trials import StepTimes
from headrace.engine.cuda_graphs.signals import VARIANTS, Trial
from headrace.engine.planning import replays
from headrace.engine.planning.replays import Replays
from headrace.engine.policies.between import Prompted, Read
from headrace.engine.policies.protocol import Shape
from headrace.engine.policies.recency import Lru
from headrace.engine.policies.replay.prompts import reads
from headrace.engine.policies.replay.replay import replay
from headrace.engine.traces import reader

Of = tuple[list[list[int]], Replays]
SLOTTED = ("lru", "lfu", "slru", "admit2", "classes", "next-layer", "split")
TRIED = {name: Trial(name=name, us=us) for name, us in zip(VARIANTS, (5.0, 60.0, 9.0, 3.0), strict=True)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Of]:
    """By batch and chunk what the model says alone, and its routing with what prompts chose. In chunks of three tokens
    prompts are read beside text that is generated."""
    found = {}
    for batch, chunk in ((1, 512), (4, 512), (4, 3)):
        path = tmp_path_factory.mktemp("traces") / "run.trace"
        with load(None, trace=path, prefill_chunk=chunk, max_sequences=4) as llm:
            said = say(llm, batch)
        trace = reader.read(path)
        found[batch, chunk] = said, replays.seeded(replays.of_trace(trace, None), trace)
    return found


def same(llm: LLM, of: Of, batch: int, name: str, path: Path, late: bool = False) -> None:
    """Tokens, and the counts of a replay of its own trace: where two experts are all but equal, which of them is chosen
    may depend on who computed the layer before."""
    said, known = of
    cache = llm.parts.expert_cache
    assert cache is not None
    assert say(llm, batch) == said
    cache.begin(0)
    llm.close()
    trace = reader.read(path)
    own = replays.seeded(replays.of_trace(trace, None), trace)
    wanted, without = (
        replay(made(name, known), own.shape, cache.budget, own.choices, tokens=1, late=late, events=events)
        for events in (own.events, {})
    )
    assert cache.counts == wanted.counts
    assert (wanted.counts == without.counts) == (name == "uniform"), "it is told something"


@pytest.mark.parametrize(("batch", "chunk"), [(1, 512), (4, 512), (4, 3)])
@pytest.mark.parametrize("name", [*SLOTTED, "uniform"])
def test_a_run_counts_as_its_replay(
    name: str, batch: int, chunk: int, runs: dict[tuple[int, int], Of], tmp_path: Path
) -> None:
    of, path = runs[batch, chunk], tmp_path / "own.trace"
    options: dict[str, Any] = {"prefill_chunk": chunk, "max_sequences": 4, "seed_experts": True, "trace": path}
    with load(made(name, of[1]), expert_cache="40%", **options) as llm:
        same(llm, of, batch, name, path)
        cache = llm.parts.expert_cache
        assert cache is not None
        assert (cache.counts.prefetched > 0) == (name != "uniform")
        up = sum(one.bytes.get("h2d", {}).get("experts", 0) for one in llm.ledger.passes)
        assert up >= cache.counts.link_bytes


@pytest.mark.parametrize("name", SLOTTED)
def test_where_steps_are_graphs(
    name: str,
    runs: dict[tuple[int, int], Of],
    library: str,
    log: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(signals, "probe", lambda *_: TRIED)
    monkeypatch.setattr(verify, "_time", lambda *_: StepTimes(graph_s=0.003, eager_s=0.004))
    stand_in_gpu.install(monkeypatch, library)
    of, path = runs[4, 512], tmp_path / "own.trace"
    with load(made(name, of[1]), expert_cache="40%", max_sequences=4, seed_experts=True, trace=path) as llm:
        assert llm.parts.graphed is not None
        same(llm, of, 4, name, path, late=True)


@pytest.mark.parametrize("name", ["lru", "lfu"])
def test_experts_on_a_disk(name: str, runs: dict[tuple[int, int], Of], tmp_path: Path) -> None:
    options: dict[str, Any] = {"placement": "disk", "max_context": 96, "max_sequences": 4, "seed_experts": True}
    options["trace"] = path = tmp_path / "own.trace"
    with LLM("demo", policy=made(name, runs[1, 512][1]), expert_cache="40%", **options) as llm:
        same(llm, runs[1, 512], 1, name, path)
        assert sum(one.bytes["disk"].get("prefetched", 0) for one in llm.ledger.passes)


def test_what_was_read_before_which_pass() -> None:
    """Passes 1 and 2 are prompts, 3 generates, 5 does beside a prompt, 7 does; of one layer."""
    passes = np.array([1, 1, 2, 3, 5, 5, 7])
    generated = np.array([False, False, False, True, True, False, True])
    ids = np.array([[0, 1], [0, 2], [2, -1], [5, 6], [5, 6], [4, 3], [5, 6]])[:, None]
    found = reads(ids, passes, generated)
    assert found == {0: [Read([{0: 2, 1: 1, 2: 2}])], 2: [Read([{3: 1, 4: 1}])]}


def test_the_most_chosen_come_and_others_leave() -> None:
    """Four places in a layer, with 0 to 3: 7 was chosen most often, then 2, then 5; 1 was used last of the others."""
    policy = Lru()
    assert isinstance(policy, Prompted)
    policy.start(Shape((8,), (10,)), 40)
    policy.last[0, 1] = 5
    moves = policy.prompted(6, [{7: 9, 2: 4, 5: 3}], [{0, 1, 2, 3}])
    assert moves.prefetch == ((0, 7), (0, 5))
    assert moves.evict == ((0, 0), (0, 3))
    assert policy.last[0, 7] > policy.last[0, 2] > policy.last[0, 5] >= 5


def test_the_command(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    with load(None, trace=path) as llm:
        llm.generate(PROMPTS[:2], PARAMS)
    replayed = "trace", "replay", path, "--policy", "lru,uniform", "--vram", "40%", "--json"
    rows, seeded = (json.loads(run(*replayed, *more)[1])["rows"] for more in ((), ("--seed-experts",)))
    assert seeded[0]["prefetched"] > rows[0]["prefetched"] == 0
    assert seeded[1] == rows[1]
    status, _, error = run(*replayed[:3], "--policy", "auto", "--seed-experts")
    assert status == 1
    assert "--seed-experts goes with policies by name" in error


def test_it_is_about_a_policy() -> None:
    with pytest.raises(OptionError, match="seed_experts is about a policy"):
        load(None, seed_experts=True)
