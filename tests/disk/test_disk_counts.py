"""Experts in the model's file: the bits of a run with all of them in RAM, and the counts of a replay."""

from __future__ import annotations

import pytest
import torch
from cached import Unsteady, made, recorded, replayed, say
from sizes import MIXED, policies

from headrace import LLM
from headrace.engine.experts.disk import staging
from headrace.engine.experts.disk.disk_cache import DiskCache
from headrace.engine.ledger.pass_bytes import EXPERTS, PREFETCHED
from headrace.engine.ledger.passes import CPU_DRAM, DISK
from headrace.engine.placement.placement import Tier
from headrace.engine.planning.replays import Replays
from headrace.engine.policies import registry

Recorded = tuple[list[list[int]], Replays]
TEXT = "And it came to pass, when the children of Israel had heard of it, that they"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Recorded]:
    """By batch what the demo model says with all experts in RAM, and its routing."""
    folder = tmp_path_factory.mktemp("traces")
    return {batch: recorded(folder / f"{batch}.trace", batch) for batch in (1, 4)}


@pytest.fixture(scope="module")
def logits() -> torch.Tensor:
    with LLM("demo", max_context=96) as llm:
        return llm.logits(TEXT)


def cache_of(llm: LLM) -> DiskCache:
    found = llm.parts.expert_cache
    assert isinstance(found, DiskCache)
    return found


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", [name for name in registry.BOX if name != "second-gpu"])
def test_every_policy_counts_as_its_replay_and_changes_no_bit(
    name: str, batch: int, runs: dict[int, Recorded], logits: torch.Tensor
) -> None:
    said, of = runs[batch]
    budget = of.shape.nbytes // 4
    with LLM("demo", placement="disk", policy=made(name, of), expert_cache=budget / 1e9, max_context=96) as llm:
        assert say(llm, batch) == said
        cache, expected = cache_of(llm), replayed(made(name, of), of, budget).counts
        assert cache.counts == expected
        assert cache.slots.nbytes <= cache.budget == budget
        size = of.shape.expert_bytes[0]  # of the demo all are alike, and stored as they are wanted
        read = llm.ledger.summary("decode").bytes[DISK]
        again = cache.slots.count if name == "belady" else 0  # what is admitted is not always kept until it has a place
        assert read.get(EXPERTS, 0) == (expected.fetched + expected.on_cpu) * size
        assert expected.prefetched * size <= read.get(PREFETCHED, 0) <= (expected.prefetched + again) * size
        assert torch.equal(llm.logits(TEXT), logits)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return recorded(tmp_path_factory.mktemp("mixed") / "run.trace", 4, **MIXED)


SHARES = {"lru": "10%", "next-layer": "40%", "belady": "10%", "greedy": "40%", "unsteady": "10%"}


@pytest.mark.parametrize("name", SHARES)
def test_experts_of_several_sizes(name: str, mixed: Recorded) -> None:
    """Those that are still read may have to move for others."""
    said, of = mixed
    policy, again = policies(name, of)
    with LLM("demo", placement="disk", policy=policy, expert_cache=SHARES[name], max_context=96, **MIXED) as llm:
        cache = cache_of(llm)
        assert len(set(cache.shape.expert_bytes)) == 2
        assert say(llm, 4) == said
        assert cache.counts == replayed(again, of, cache.budget).counts
        plan = llm.parts.memory_plan
        assert plan.memory[Tier.CPU].needed["expert cache"] == len(cache.memory.data) > cache.budget


def test_a_pass_reads_from_ram_what_it_computes_with(runs: dict[int, Recorded]) -> None:
    """The same as with all experts there, in prompts too; of the disk what is not resident."""
    said, _ = runs[4]
    with LLM("demo", max_context=96) as llm:
        say(llm, 4)
        expected = {phase: llm.ledger.summary(phase) for phase in ("prefill", "decode")}
    with LLM("demo", placement="disk", policy="all-ram", max_context=96) as llm:
        assert say(llm, 4) == said
        for phase, one in expected.items():
            found = llm.ledger.summary(phase).bytes
            assert found[CPU_DRAM] == one.bytes[CPU_DRAM]
            assert found[DISK] == {EXPERTS: one.bytes[CPU_DRAM][EXPERTS]}
        times = llm.ledger.summary("decode").times
        assert times is not None
        assert 0 < times.busy[DISK] < llm.ledger.summary("decode").measured_s
    with LLM("demo", placement="disk", policy="uniform", expert_cache="100%", max_context=96) as llm:
        assert say(llm, 4) == said
        assert DISK not in llm.ledger.summary("decode").bytes
        assert cache_of(llm).counts.hit_rate == 1


@pytest.mark.parametrize("chunk", [3, 512])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("blocks", [2, 16])
def test_whatever_a_policy_does_no_bit_changes(
    seed: int, chunk: int, blocks: int, runs: dict[int, Recorded], logits: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts in chunks beside text; few blocks for what is read once, and places that change hands while they are
    read into."""
    monkeypatch.setattr(staging, "MOST", blocks)
    said, of = runs[4]
    with LLM(
        "demo", placement="disk", policy=Unsteady(seed), expert_cache="40%", prefill_chunk=chunk, max_context=96
    ) as llm:
        assert say(llm, 4) == said
        cache = cache_of(llm)
        if chunk == 512:  # in chunks, passes are others than those of the trace
            assert cache.counts == replayed(Unsteady(seed), of, cache.budget).counts
        assert cache.counts.fetched
        assert cache.counts.admitted
        assert cache.counts.prefetched
        free = [len(one) for one in cache.slots.zones.free.values()]
        assert sum(free) == cache.slots.count - sum(map(len, cache.residents.by_layer))
        assert torch.equal(llm.logits(TEXT), logits)
