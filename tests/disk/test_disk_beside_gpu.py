"""Experts in the model's file beside a GPU that is played: its tokens and bits, counts, bytes, memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stand_in_gpu
import torch
from cached import PARAMS, PROMPTS, Unsteady, made, recorded, replayed, say

from headrace import LLM, MemoryNeeded, OptionError
from headrace.engine.experts.disk.beside_gpu import DiskBesideGpu
from headrace.engine.ledger.passes import CPU_DRAM, D2H, DISK, GPU_HBM, H2D
from headrace.engine.memory.required import EXPERT_CACHE, READING
from headrace.engine.placement.placement import Tier
from headrace.engine.planning.replays import Replays
from headrace.engine.terminal import generate_report

Recorded = tuple[list[list[int]], Replays]
TEXT = "And it came to pass, when the children of Israel had heard of it, that they"
BESIDE: dict[str, Any] = {"placement": "disk", "device": "simulated", "max_context": 96}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Recorded]:
    folder = tmp_path_factory.mktemp("traces")
    return {batch: recorded(folder / f"{batch}.trace", batch) for batch in (1, 4)}


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", ["all-ram", "lru", "admit2", "next-layer", "unsteady"])
def test_the_bits_of_a_cpu_and_the_counts_of_a_replay(name: str, batch: int, runs: dict[int, Recorded]) -> None:
    said, of = runs[batch]
    policy, again = (Unsteady(4), Unsteady(4)) if name == "unsteady" else (made(name, of), made(name, of))
    budget = of.shape.nbytes // 4
    with LLM("demo", max_context=96) as alone:
        wanted = alone.logits(TEXT)
    with LLM("demo", policy=policy, expert_cache=budget / 1e9, **BESIDE) as llm:
        assert isinstance(llm.parts.decoder.experts, DiskBesideGpu)
        assert say(llm, batch) == said
        cache, expected = llm.parts.expert_cache, replayed(again, of, budget).counts
        assert cache is not None
        assert cache.counts == expected
        assert torch.equal(llm.logits(TEXT), wanted)


def test_what_a_step_reads_and_sends() -> None:
    with LLM("demo", expert_cache="30%", **BESIDE) as beside, LLM("demo", **{**BESIDE, "device": "cpu"}) as alone:
        for llm in (beside, alone):
            llm.generate(PROMPTS[1], PARAMS)
        spec, steps = (
            beside.spec,
            [[one for one in llm.ledger.passes if one.phase == "decode"][3] for llm in (beside, alone)],
        )
        step, other = steps
        hidden, routing = spec.moe_layers * spec.hidden * 4, spec.moe_layers * spec.moe.top_k * 8
        assert step.bytes[D2H]["experts"] == step.bytes[H2D]["experts"] == hidden
        assert step.bytes[D2H]["routing"] == routing
        assert step.bytes[CPU_DRAM] == {"experts": other.bytes[CPU_DRAM]["experts"]}
        assert step.bytes[GPU_HBM]["dense"] == other.bytes[CPU_DRAM]["dense"]
        assert step.bytes[DISK]["experts"] > 0
        assert step.times is not None
        assert step.times.busy[CPU_DRAM] > 0


def test_what_lies_where(tmp_path: Path) -> None:
    limits = {"vram_limit": 0.03, "ram_limit": 0.08}
    with LLM("demo", **BESIDE, **limits, prefill_chunk=64, max_sequences=2) as llm:
        plan, cache = llm.parts.memory_plan, llm.parts.expert_cache
        assert cache is not None
        assert cache.slots.nbytes <= plan.expert_cache
        ram, vram = plan.memory[Tier.CPU], plan.memory[Tier.GPU0]
        assert "common weights" in vram.needed
        assert EXPERT_CACHE not in vram.needed
        assert ram.needed[EXPERT_CACHE] == plan.expert_cache
        assert ram.needed[READING] > 0
        assert vram.total <= 0.03e9
        assert ram.total + vram.total <= 0.08e9, "what is played is RAM, too"
        said = str(generate_report.startup_table(llm).title)
        assert "gpu0: simulated" in said
        assert "hand-off: eager, experts on a disk are read between the layers of a step" in said


def test_what_does_not_fit() -> None:
    with pytest.raises(MemoryNeeded, match=r"placement disk: gpu0 \(simulated\) would hold"):
        LLM("demo", vram_limit=0.005, **BESIDE)
    with pytest.raises(MemoryNeeded, match="placement disk: RAM would hold"):
        LLM("demo", expert_cache=0.01, ram_limit=0.02, prefill_chunk=64, max_sequences=2, **BESIDE)


@pytest.mark.parametrize("way", ["memop", "hostfunc", "spin"])
def test_graphs_are_refused_by_name(way: str, library: str, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a driver that has them, too."""
    stand_in_gpu.install(monkeypatch, library)
    with pytest.raises(OptionError, match=f"handoff is '{way}': experts on a disk are read between the layers"):
        LLM("demo", handoff=way, **BESIDE)


def test_a_driver_that_has_graphs_is_used_by_hand(
    runs: dict[int, Recorded], library: str, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_gpu.install(monkeypatch, library)
    with LLM("demo", expert_cache="30%", **BESIDE) as llm:
        assert llm.parts.graphed is None
        assert say(llm, 4) == runs[4][0]


def test_a_command(run: Callable[..., tuple[int, str, str]]) -> None:
    said = "generate", "demo", "In the beginning", "-n", "8", "--json", "--expert-cache", "25%", "--placement", "disk"
    beside, alone = (json.loads(run(*said, *more)[1]) for more in (("--device", "simulated"), ()))
    assert beside["text"] == alone["text"]
    assert beside["expert_cache"] == alone["expert_cache"]
