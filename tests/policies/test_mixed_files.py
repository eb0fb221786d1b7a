"""Files whose experts have several sizes (Q4_K_M): every policy, in memory of its own and in what the KV cache shares,
counts as its replay and changes no token, whichever bytes it moves between layers of different sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf_files
import pytest
import tiny
from cached import load, recorded, replayed, say
from shared_blocks import TIGHT, Of, counted, unsettled
from sizes import MIXED, policies
from stand_in_gpu import StandIn

from headrace import LLM, SamplingParams
from headrace.engine.cuda_graphs import verify
from headrace.engine.cuda_graphs.saved_trials import StepTimes
from headrace.engine.experts.cache.expert_cache import ExpertCache
from headrace.engine.placement.placement import Tier
from headrace.engine.planning import replays
from headrace.engine.planning.replays import Replays
from headrace.engine.policies import registry
from headrace.engine.traces import reader

SHARES = (0.07, 0.3, 0.65)
ALL = [*registry.BOX, "greedy", "unsteady"]
LIMIT: dict[str, Any] = {**MIXED, **TIGHT, "vram_limit": 0.0064}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Of]:
    folder = tmp_path_factory.mktemp("traces")
    return {batch: recorded(folder / f"{batch}.trace", batch, **MIXED) for batch in (1, 4)}


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> Of:
    return recorded(tmp_path_factory.mktemp("traces") / "run.trace", 4, max_context=512, prefill_chunk=64, **MIXED)


@pytest.fixture
def gpu(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Whose graphs are faster than steps by hand."""
    monkeypatch.setattr(verify, "_time", lambda *_: StepTimes(graph_s=0.003, eager_s=0.004))
    return gpu


def cache_of(llm: LLM) -> ExpertCache:
    cache = llm.parts.expert_cache
    assert isinstance(cache, ExpertCache)
    assert len(set(cache.shape.expert_bytes)) == 2
    return cache


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", ALL)
def test_every_policy_counts_as_its_replay(name: str, batch: int, runs: dict[int, Of]) -> None:
    said, known = runs[batch]
    for share in SHARES if batch == 4 else SHARES[1:2]:
        budget = int(share * known.shape.nbytes)
        policy, again = policies(name, known)
        with load(policy, expert_cache=budget / 1e9, **MIXED) as llm:
            assert say(llm, batch) == said
            cache = cache_of(llm)
            assert cache.budget == budget
            assert cache.counts == replayed(again, known, budget).counts
            assert cache.late_arrivals == 0


@pytest.mark.parametrize("name", [name for name in ALL if name != "second-gpu"])
def test_the_same_where_the_kv_cache_takes_room_by_chance(name: str, of: Of) -> None:
    said, known = of
    policy, again = policies(name, known)
    with load(policy, **LIMIT) as llm:
        cache, plan = cache_of(llm), llm.parts.memory_plan
        assert plan.shared is not None, plan.not_shared
        first = cache.budget
        assert first == plan.cache_at_start
        assert cache.shared is not None
        assert len(cache.shared.data) == plan.shared.nbytes, "to the byte"
        needed = plan.memory[Tier.GPU0].needed
        spare = plan.shared.taken(0)  # of graphs, which is among the buffers of a pass
        assert needed["KV cache"] + needed["expert cache"] + spare == plan.shared.nbytes
        seen = unsettled(llm, 7)
        assert say(llm, 4) == said
        assert len({budget for _, budget in seen}) > 2
        counted(llm, first, again, known)


@pytest.mark.parametrize("name", [name for name in ALL if name != "second-gpu"])
def test_the_same_where_steps_are_graphs(name: str, of: Of, gpu: StandIn) -> None:
    said, known = of
    policy, again = policies(name, known)
    with load(policy, **LIMIT) as llm:
        assert llm.parts.graphed is not None
        seen, first = unsettled(llm, 8), cache_of(llm).budget
        assert say(llm, 4) == said
        assert gpu.recorders[0].replays > 10
        assert len({budget for _, budget in seen}) > 2
        counted(llm, first, again, known, late=True)


@pytest.mark.parametrize("name", ["next-layer", "greedy", "unsteady"])
def test_who_is_on_its_way_may_move(name: str, of: Of) -> None:
    """Over a link of 2 ms an expert copies are late, also those to places that others then take."""
    said, known = of
    policy, again = policies(name, known)
    with load(policy, link_limit=0.015, **LIMIT) as llm:
        first, _ = cache_of(llm).budget, unsettled(llm, 9)
        assert say(llm, 4) == said
        counted(llm, first, again, known)


def test_memory_that_is_said_has_room_to_move_besides() -> None:
    with load("lru", expert_cache="30%", **MIXED) as llm:
        cache, plan = cache_of(llm), llm.parts.memory_plan
        small, large = sorted(set(cache.shape.expert_bytes))
        assert plan.expert_cache == cache.budget == int(0.3 * cache.shape.nbytes)
        most = plan.memory[Tier.GPU0].needed["expert cache"] - cache.budget
        assert 0 < most < 2 * large
        bank = cache.bank(next(n for n, is_moe in enumerate(llm.spec.is_moe) if is_moe))
        assert bank is not None
        assert bank.data.untyped_storage().nbytes() == cache.budget + most
        assert small < large


SMALL: dict[str, Any] = {
    "max_context": 256,
    "max_sequences": 3,
    "prefill_chunk": 64,
    "kv_format": "f32",
    "cpu_activations": "bf16",
}


# ---- a GGUF file whose layers have gate, up and down in formats of their own


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]], Replays]:
    """The file, what it says alone, and the trace of that."""
    base = tmp_path_factory.mktemp("dynamic")
    sizes = {"hidden_size": 256, "head_dim": 64, "moe_intermediate_size": 512, "intermediate_size": 256}
    tiny.build("qwen3_moe", base / "shapes", **sizes, num_hidden_layers=7, mlp_only_layers=[1])
    types = gguf_files.by_role(
        token_embd="Q4_K", output="Q6_K", attn_q="Q4_K", attn_k="Q5_K", attn_v="Q8_0", ffn_gate_exps="Q2_K/Q3_K",
        ffn_up_exps="Q3_K/IQ4_XS", ffn_down_exps="Q3_K/Q4_K/Q5_K", ffn_gate="Q5_K", ffn_up="Q4_K", ffn_down="Q6_K",
    )  # fmt: skip
    gguf_files.mixed(base / "shapes", base / "mix.gguf", base / "twin", types)
    with LLM(base / "mix.gguf", trace=base / "run.trace", **SMALL) as llm:
        said = told(llm)
    return base / "mix.gguf", said, replays.of_trace(reader.read(base / "run.trace"), None)


def told(llm: LLM) -> list[list[int]]:
    prompts = [[5 + n % 50 for n in range(90)], [40 - n % 31 for n in range(60)], [7, 8, 9]]
    return [one.token_ids for one in llm.generate(prompts, SamplingParams(max_new_tokens=24, ignore_eos=True))]


@pytest.mark.parametrize("name", ["lru", "next-layer", "belady", "greedy", "unsteady"])
def test_a_gguf_file_with_formats_of_its_own_in_every_layer(
    name: str, dynamic: tuple[Path, list[list[int]], Replays]
) -> None:
    path, said, known = dynamic
    policy, again = policies(name, known)
    beside: dict[str, Any] = {"device": "simulated", **SMALL}
    with LLM(path, policy="lru", **beside) as llm:
        plan = llm.parts.memory_plan
        limit = plan.memory[Tier.GPU0].total - 0.67 * plan.kv_budget.kv_bytes - 0.4 * sum(plan.experts)
    with LLM(path, policy=policy, vram_limit=limit / 1e9, **beside) as llm:
        cache = llm.parts.expert_cache
        assert isinstance(cache, ExpertCache)
        assert len(set(cache.shape.expert_bytes)) > 3
        assert llm.parts.memory_plan.shared is not None
        seen, first = unsettled(llm, 5), cache.budget
        assert first < cache.shape.nbytes
        assert told(llm) == said
        assert len({budget for _, budget in seen}) > 1
        counted(llm, first, again, known)
