"""Counts of experts: whatever way a pass takes, they are the choices of its tokens, each once, rows that pad a batch
left out."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import stand_in_gpu
import torch
from placements import PLACEMENTS, placed
from routing import LENGTH, PARAMS, PROMPTS, Watch, load_demo, run, split_layers

from headrace import LLM
from headrace.engine.cuda_graphs import signals
from headrace.engine.cuda_graphs.signals import VARIANTS, Trial
from headrace.engine.experts.backend import Chosen
from headrace.engine.experts.counts import ExpertCounts, by_tier, hottest
from headrace.engine.placement.placement import Placement, Tier
from headrace.kernels.cases.case import BASIC, RandomSource
from headrace.kernels.cases.layers import layers_inputs
from headrace.kernels.context import Context
from headrace.kernels.cpu import CpuOps
from headrace.kernels.decoder_layer import compose_layers
from headrace.kernels.isa import available_isas
from headrace.kernels.passes.tally import Tally

Key = tuple[str, int, int]  # "prompt" or "generated", layer, expert


def counted(llm: LLM) -> Counter[Key]:
    found = llm.expert_counts
    planes = {"prompt": found.prompt_LE.tolist(), "generated": found.generated_LE.tolist()}
    return Counter(
        {
            (name, layer, expert): count
            for name, plane in planes.items()
            for layer, row in enumerate(plane)
            for expert, count in enumerate(row)
            if count
        }
    )


@pytest.mark.parametrize("kernels", ["cpu", "reference"])
def test_one_call_counts_what_layers_one_by_one_choose(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"dtype": "float32"} if kernels == "reference" else {}
    llm, twin = load_demo(kernels=kernels, **options), load_demo(kernels=kernels, **options)
    watch = Watch(monkeypatch)
    twin.parts.decoder.choose = lambda layer, choice: choice
    said = run(twin)
    assert watch.found, "the twin goes layer by layer"
    assert counted(twin) == watch.found
    monkeypatch.undo()
    assert run(llm) == said
    assert counted(llm) == watch.found
    assert {one.phase for one in llm.ledger.passes} == {"prefill", "mixed", "decode"}


def test_the_sums_are_those_of_tokens_and_layers() -> None:
    with load_demo() as llm:
        run(llm)
        found, top_k, layers = llm.expert_counts, llm.spec.moe.top_k, llm.spec.moe_layers
        fed_back = sum(one.max_new_tokens - 1 for one in PARAMS)
        assert found.generated_LE.sum() == fed_back * top_k * layers
        prompts = len(PROMPTS) * LENGTH * (layers - 1) + len(PROMPTS)  # one token each in the last layer
        assert found.prompt_LE.sum() == prompts * top_k
        assert torch.equal(found.all_LE, found.prompt_LE + found.generated_LE)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_beside_a_gpu(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = load_demo(device="simulated", **placed(PLACEMENTS[name], tmp_path))
    watch = Watch(monkeypatch)
    run(llm)
    assert watch.found
    assert counted(llm) == watch.found


@pytest.mark.parametrize("layers", ["all in RAM", "three in RAM", "each split"])
def test_graphs_do_not_count_rows_that_pad_a_batch(
    layers: str, library: str, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "probe", lambda *_: {name: Trial(name=name, us=5.0) for name in VARIANTS})
    gpu = stand_in_gpu.install(monkeypatch, library)
    named: dict[str, dict[str, Any]] = {"all in RAM": {"cpu_moe": True}, "three in RAM": {"n_cpu_moe": 3}}
    options = named.get(layers) or split_layers(tmp_path)
    with load_demo(device="simulated", handoff="memop", **options) as llm:
        assert llm.parts.graphed is not None
        watch, before = Watch(monkeypatch), gpu.recorders[0].replays
        run(llm)
        assert gpu.recorders[0].replays > before, "decode steps are graphs"
        assert {one.tokens for one in llm.ledger.passes if one.phase == "decode"} >= {3}, "of size 4"
        assert counted(llm) == watch.found


def test_what_is_outside_of_the_ledger_is_not_counted() -> None:
    with load_demo() as llm:
        llm.logits(PROMPTS[0])
        assert llm.expert_counts.all_LE.sum() == 0


def test_a_snapshot_does_not_grow_and_may_be_taken_by_any_thread() -> None:
    with load_demo() as llm:
        run(llm)
        first = llm.expert_counts.all_LE
        kept, seen = first.clone(), []
        reader = threading.Thread(target=lambda: seen.extend(llm.expert_counts.all_LE.sum() for _ in range(200)))
        reader.start()
        run(llm)
        reader.join()
        assert torch.equal(first, kept)
        assert seen == sorted(seen)
        assert len(seen) == 200
        assert llm.expert_counts.all_LE.sum() > kept.sum()


def test_layers_of_different_tokens_add_up() -> None:
    counts = ExpertCounts(3, 4)
    ids = torch.tensor([[0, 1], [1, 3], [2, 1]], dtype=torch.int32)
    counts.add([Chosen(0, ids), Chosen(2, ids[1:])], decoding=1)
    counts.add([], decoding=0)
    found = counts.snapshot()
    assert found.generated_LE.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1]]
    assert found.prompt_LE.tolist() == [[0, 2, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0]]


@pytest.mark.parametrize("rows", ["", "few rows", "no rows"])
@pytest.mark.parametrize("isa", available_isas())
def test_the_call_tells_ids_and_weights_as_its_parts_do(rows: str, isa: str) -> None:
    """Every kernel set that this machine has gives the choices bit by bit."""
    fast, g = CpuOps(Context(isa=isa)), torch.Generator()
    found = []
    for layers in (fast.layers, lambda *given: compose_layers(fast, *given)):
        g.manual_seed(3)
        i = layers_inputs(g, RandomSource(g), BASIC[0], ["dense", "moe", "shared", "gated"], [3, 1], [0, 9], rows)
        experts = next(one.bank.experts for one in i["stack"].layers if one.bank is not None)
        top_k = i["stack"].layers[1].block.router.top_k
        counts, chosen = torch.zeros(2, 4, experts, dtype=torch.int64), (4, 4, top_k)
        ids, weights = torch.full(chosen, -1, dtype=torch.int32), torch.full(chosen, -1.0)
        tally = Tally(counts_2LE=counts, decoding=1, ids_LTK=ids, weights_LTK=weights)
        layers(i["x"], i["stack"], i["places"], i["rows"], tally)
        found.append((counts, ids, weights))
    assert all(torch.equal(*both) for both in zip(*found, strict=True))
    counts, ids, _ = found[0]
    assert counts[:, 0].sum() == 0, "a dense layer"
    assert torch.equal(counts[1, 1].nonzero().flatten(), ids[1, 0].sort().values.long()), "the first token alone"
    assert counts[:, 1].sum() == 4 * top_k


def test_shares_of_tiers_and_of_the_hottest() -> None:
    """Dense layers have no experts: their zeros are none that were never chosen."""
    rows = ((), (Tier.CPU, Tier.GPU0, Tier.CPU, Tier.CPU), (Tier.GPU1,) * 4)
    placement = Placement(name="", main=Tier.GPU0, experts=rows)
    counts = torch.tensor([[0, 0, 0, 0], [5, 20, 0, 15], [30, 10, 10, 10]])
    assert by_tier(counts, placement) == {Tier.GPU0: 20, Tier.GPU1: 60, Tier.CPU: 20}
    assert hottest(counts, placement, [0.01, 0.25, 0.5, 1.0]) == [0.3, 0.5, 0.75, 1.0]
    assert hottest(torch.zeros_like(counts), placement, [0.5]) == [None]
