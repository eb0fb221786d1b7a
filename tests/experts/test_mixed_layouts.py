"""Models whose layers have experts of different formats and sizes, on several tiers: the tokens of the CPU alone,
copies through buffers of the largest, bytes of each layer's own; and a GPU without kernels for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from placements import PLACEMENTS, placed
from slow_stream import SlowStream

from headrace import LLM, SamplingParams
from headrace.engine.core.compile_ahead import banks_on
from headrace.engine.devices.streams import HostStream
from headrace.engine.experts.streaming import Ring, by_number, chosen_numbers
from headrace.engine.ledger.pass_bytes import EXPERTS
from headrace.engine.ledger.passes import CPU_DRAM, GPU_HBM, H2D
from headrace.engine.placement.placement import Tier
from headrace.kernels import FORMATS, ExpertLayout, reference
from headrace.kernels.packed import ExpertBank

# Rows of down are 64 wide: in q5_0, and in q8_0 where it gets more.
MIXED = {"expert_format": "q4_k_m", "dense_format": "q4_k_m"}
MOVES: dict[str, dict[str, Any]] = {
    "none": {"stream_from": "never"},
    "streamed": {"stream_from": 2},
}
PROMPTS = ["In the beginning", "And it came to pass, when the children", "Behold,"]
GREEDY = SamplingParams(max_new_tokens=8, ignore_eos=True)


def load(**options: Any) -> LLM:
    return LLM("demo", max_context=96, max_sequences=4, **{**MIXED, **options})


def tokens(llm: LLM) -> list[list[int]]:
    return [one.token_ids for one in llm.generate(list(PROMPTS), GREEDY)]


@pytest.fixture(scope="module")
def alone() -> list[list[int]]:
    with load() as llm:
        return tokens(llm)


def sizes(llm: LLM) -> list[int]:
    """Bytes of an expert, by layer."""
    formats, spec = llm.parts.checkpoint.formats, llm.spec
    return [formats.layout(spec, i).bytes if is_moe else 0 for i, is_moe in enumerate(spec.is_moe)]


@pytest.mark.parametrize("moved", MOVES)
@pytest.mark.parametrize("name", PLACEMENTS)
def test_the_tokens_are_those_of_the_cpu_alone(name: str, moved: str, alone: list[list[int]], tmp_path: Path) -> None:
    with load(device="simulated", **placed(PLACEMENTS[name], tmp_path), **MOVES[moved]) as llm:
        assert len({size for size in sizes(llm) if size}) == 2
        assert tokens(llm) == alone


@pytest.mark.parametrize("policy", ["lru", "first-layers", "next-layer"])
@pytest.mark.parametrize("share", ["10%", "30%", "100%"])
def test_a_cache_has_a_pool_for_each_layout(policy: str, share: str, alone: list[list[int]]) -> None:
    with load(device="simulated", policy=policy, expert_cache=share) as llm:
        assert tokens(llm) == alone
        cache = llm.parts.expert_cache
        assert cache is not None
        assert len({bank.layout for bank in cache.slots.banks if bank is not None}) == 2
        assert cache.slots.nbytes <= cache.budget


def test_buffers_are_for_the_largest_and_bytes_each_layers_own() -> None:
    """A streamed prompt, its first experts of the next layer copied before they are chosen."""
    with load(device="simulated", cpu_moe=True, stream_from=2) as llm:
        mine, offload = sizes(llm), llm.parts.memory_plan.offload
        assert offload.expert == max(mine)
        assert offload.buffer_bytes(512) == 2 * offload.piece * max(mine) + 512 * llm.spec.hidden * 4
        experts: Any = llm.parts.decoder.experts
        assert experts.ring.nbytes == 2 * offload.piece * max(mine)
        prompt = llm.generate([list(range(3, 43))], SamplingParams(max_new_tokens=1, ignore_eos=True))[0].ledger[0]
        streamed = [work for work in prompt.layers if work.is_streamed]
        assert len({mine[work.layer] for work in streamed}) == 2
        for work in streamed:
            assert work.copied % mine[work.layer] == 0
            assert work.copied == work.bytes[GPU_HBM][EXPERTS] == work.bytes[H2D][EXPERTS]
        last = prompt.layers[-1]
        assert last.bytes[CPU_DRAM][EXPERTS] == llm.spec.moe.top_k * mine[last.layer]


# ---- the ring


def bank(gate: str, down: str, seed: int, experts: int = 7) -> ExpertBank:
    """Random experts of 64 x 96."""
    generator = torch.Generator().manual_seed(seed)
    layout = ExpertLayout(format=FORMATS[gate], down_format=FORMATS[down], hidden=96, width=64)
    made = ExpertBank.empty(layout, experts)
    for number in range(experts):
        for part in ("gate", "up", "down"):
            matrix = made.matrix(number, part)  # type: ignore[arg-type]
            values = torch.randn(matrix.rows, matrix.cols, generator=generator)
            matrix.data.copy_(reference.quantize(values, matrix.format))
    return made


def streams(slow: bool) -> Iterator[Any]:
    yield from (SlowStream(1, 0.003), SlowStream(2, 0.003)) if slow else (HostStream(), HostStream())


@pytest.mark.parametrize("is_slow", [False, True])
@pytest.mark.parametrize("early", [False, True])
def test_banks_of_several_layouts_take_turns(early: bool, is_slow: bool) -> None:
    """Small experts, then large ones, in the same two buffers; with first pieces that were copied unasked."""
    banks = [bank("q4_0", "q4_0", 1), bank("q8_0", "bf16", 2), bank("q5_0", "q8_0", 3)]
    largest = max((one.layout for one in banks), key=lambda layout: layout.bytes)
    main, side = streams(is_slow)
    ring = Ring(largest, 3, reference, torch.device("cpu"), main, side)  # type: ignore[arg-type]
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(4))
    ids = torch.tensor([[0, 6], [1, 5], [2, 4], [3, 0], [6, 1]], dtype=torch.int32)
    weights, found = torch.full((5, 2), 0.5), []
    for one in banks * 2:
        y = torch.zeros(5, 96)
        if early:
            ring.fetch(one)
        ring.add(y, x, ids, weights, one, by_number(chosen_numbers(ids, 7), 3, 7))
        found.append(y)
    for stream in (side, main):
        if isinstance(stream, SlowStream):
            stream.end()
    for y, one in zip(found, banks * 2, strict=True):
        torch.testing.assert_close(y, reference.experts(x, ids, weights, one))


def test_buffers_of_the_first_layout_would_not_do() -> None:
    """That the test above can fail."""
    small, large = bank("q4_0", "q4_0", 1), bank("q8_0", "bf16", 2)
    ring = Ring(small.layout, 3, reference, torch.device("cpu"), HostStream(), HostStream())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        ring.fetch(large)


# ---- the Triton kernels


def test_kernels_are_compiled_for_every_layout_that_is_copied() -> None:
    """Of the banks in RAM, whose experts the GPU computes in the ring's buffers: not of the largest alone."""
    with load(device="simulated", cpu_moe=True, stream_from=2) as llm:
        tiered: Any = llm.parts.decoder.experts
        in_ram = {split.banks[Tier.CPU.value].layout for split in tiered.banks if split is not None}
        assert len(in_ram) == 2
        found = [(bank.layout, bank.experts) for bank in banks_on(tiered, tiered.main.tier)]
        assert {layout for layout, _ in found} == in_ram
        assert {experts for _, experts in found} == {1, tiered.ring.piece}


@pytest.mark.usefixtures("whole_model")
def test_a_gpu_computes_with_a_mix(checkpoints: Callable[[str], Path]) -> None:
    """Attention, head and experts, on a GPU that the interpreter plays: some experts in RAM."""
    options: dict[str, Any] = dict(**MIXED, dtype="float32", kernels="reference", max_context=32)
    model, ids = str(checkpoints("qwen2_moe")), [5]
    with LLM(model, **options) as alone:
        one = alone.logits(ids)
    with LLM(model, device="simulated:gpu", n_cpu_moe=1, **options) as split:
        assert split.parts.main.backend == "gpu"
        formats = {split.parts.checkpoint.formats.layout(split.spec, i).name for i in range(len(split.spec.layers))}
        assert len(formats) > 1
        assert (one - split.logits(ids)).abs().max() < 1e-4 * one.abs().max()
