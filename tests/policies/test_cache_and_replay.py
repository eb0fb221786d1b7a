"""The expert cache in the engine does what a replay of the same tokens says, to the count, and changes no token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cached import Unsteady, load, made, recorded, replayed, say
from stand_in_gpu import StandIn

from headrace.engine.cuda_graphs import verify
from headrace.engine.cuda_graphs.saved_trials import StepTimes
from headrace.engine.planning.replays import Replays
from headrace.engine.policies import registry

Recorded = tuple[list[list[int]], Replays]
SHARES = (0.07, 0.3, 0.65)  # of all experts: less than a step's choices, some of them, most


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Recorded]:
    """By batch what the demo model says alone on the CPU, and its routing."""
    folder = tmp_path_factory.mktemp("traces")
    return {batch: recorded(folder / f"{batch}.trace", batch) for batch in (1, 4)}


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", registry.BOX)
def test_every_policy_counts_as_its_replay(name: str, batch: int, runs: dict[int, Recorded]) -> None:
    said, of = runs[batch]
    for share in SHARES if batch == 4 else SHARES[1:2]:
        budget = int(share * of.shape.nbytes)
        with load(made(name, of), expert_cache=budget / 1e9) as llm:
            assert say(llm, batch) == said
            cache = llm.parts.expert_cache
            assert cache is not None
            assert cache.budget == budget
            assert cache.counts == replayed(made(name, of), of, budget).counts
            assert cache.late_arrivals == 0
            assert cache.slots.nbytes <= budget


@pytest.mark.parametrize("chunk", [3, 512])
@pytest.mark.parametrize("seed", range(6))
def test_whatever_a_policy_does_no_token_changes(seed: int, chunk: int, runs: dict[int, Recorded]) -> None:
    """Prompts in chunks beside text that is generated; slots that change hands while a layer uses them."""
    said, of = runs[4]
    with load(Unsteady(seed), expert_cache="40%", prefill_chunk=chunk, max_sequences=4) as llm:
        assert say(llm, 4) == said
        cache = llm.parts.expert_cache
        assert cache is not None
        if chunk == 512:  # in chunks, passes are others than those of the trace
            assert cache.counts == replayed(Unsteady(seed), of, cache.budget).counts
        assert cache.counts.fetched
        assert cache.counts.admitted
        assert cache.counts.prefetched


def test_the_policy_of_the_docs_runs_in_the_engine(runs: dict[int, Recorded]) -> None:
    said, of = runs[1]
    text = (Path(__file__).parents[2] / "docs/policies.md").read_text(encoding="utf-8")
    there: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], there)
    with load(there["KeepTheRepeated"](), expert_cache="30%") as llm:
        assert say(llm, 1) == said
        cache = llm.parts.expert_cache
        assert cache is not None
        assert cache.counts == replayed(there["KeepTheRepeated"](), of, cache.budget).counts
        assert cache.counts.fetched


# ---- where steps are graphs


@pytest.fixture
def gpu(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Whose graphs are faster than steps by hand."""
    monkeypatch.setattr(verify, "_time", lambda *_: StepTimes(graph_s=0.003, eager_s=0.004))
    return gpu


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", [name for name in registry.BOX if name != "second-gpu"])
def test_steps_that_are_graphs_count_as_a_late_replay(
    name: str, batch: int, runs: dict[int, Recorded], gpu: StandIn
) -> None:
    said, of = runs[batch]
    budget = int(0.3 * of.shape.nbytes)
    with load(made(name, of), expert_cache=budget / 1e9, max_sequences=4) as llm:
        assert llm.parts.graphed is not None
        assert say(llm, batch) == said
        assert gpu.recorders[0].replays > 10
        cache = llm.parts.expert_cache
        assert cache is not None
        cache.begin(0)  # the last pass is counted when another begins
        assert cache.counts == replayed(made(name, of), of, budget, late=True).counts


@pytest.mark.parametrize("seed", range(3))
def test_a_policy_without_sense_behind_graphs(seed: int, runs: dict[int, Recorded], gpu: StandIn) -> None:
    said, of = runs[4]
    with load(Unsteady(seed), expert_cache="40%", max_sequences=4) as llm:
        assert llm.parts.graphed is not None
        assert say(llm, 4) == said
        cache = llm.parts.expert_cache
        assert cache is not None
        cache.begin(0)
        assert cache.counts == replayed(Unsteady(seed), of, cache.budget, late=True).counts
        assert cache.counts.admitted
        assert cache.counts.prefetched
