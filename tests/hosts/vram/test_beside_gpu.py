"""A coordinator with VRAM of its own beside hosts: the tokens of a GPU and a CPU of one machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from host_processes import GREEDY, PROMPT, coordinator, said
from thread_hosts import ThreadHosts

from headrace import LLM, OptionError
from headrace.engine.bandwidth_model.network import balance
from headrace.engine.ledger.passes import CPU_DRAM, D2H, GPU_HBM, H2D, NET
from headrace.engine.placement.placement import Tier
from headrace.engine.terminal import generate_report
from headrace.errors import DeviceError

Checkpoints = Callable[[str], Path]
BESIDE = {"device": "simulated", "max_context": 128}


def placed(path: Path, *rules: dict[str, Any], default: str) -> Path:
    path.write_text(json.dumps({"version": 1, "default": default, "rules": list(rules)}))
    return path


def expected(model: Path | str, path: Path) -> tuple[list[list[int]], torch.Tensor]:
    """What one machine says whose GPU holds the same experts, and its CPU the others."""
    with LLM(model, no_measure=True, placement=str(path), **BESIDE) as llm:
        return said(llm), llm.logits(PROMPT)


HALF = {"layers": "0-4", "experts": "0-7", "tier": "gpu0"}
WHOLE = {"layers": [5, 6], "tier": "gpu0"}  # all of their experts: no host is asked


@pytest.mark.parametrize("default", ["cpu", "host1", "host2"])
def test_a_file_says_what_is_in_vram(default: str, tmp_path: Path) -> None:
    alone = placed(tmp_path / "alone.json", HALF, WHOLE, default="cpu")
    rest = {"layers": "0-4", "experts": "10-13", "tier": "host1"}
    path = placed(tmp_path / "hosts.json", HALF, rest, WHOLE, default=default)
    hosts = ThreadHosts("demo", 2)
    try:
        with coordinator(hosts, placement=str(path), **BESIDE) as llm:
            texts, logits = expected("demo", alone)
            assert torch.equal(llm.logits(PROMPT), logits)
            assert said(llm) == texts
            tiers = llm.parts.placement.tiers
            assert Tier.GPU0 in tiers
            assert Tier.NET in tiers
            assert (Tier.CPU in tiers) == (default == "cpu")
    finally:
        hosts.close()


def test_nothing_of_a_layer_that_failed_is_taken_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer asks no host, so that what an error left under way would be taken for its answer."""
    path = placed(tmp_path / "hosts.json", {"layers": "0", "tier": "gpu0"}, default="host1")
    hosts = ThreadHosts("demo", 1)
    try:
        with coordinator(hosts, placement=str(path), **BESIDE) as llm:
            wanted, net = llm.logits(PROMPT), llm.parts.net_experts
            assert net is not None

            def lost(job: Any) -> None:
                raise DeviceError("lost")

            with monkeypatch.context() as once:
                once.setattr(net, "collect", lost)
                with pytest.raises(DeviceError):
                    llm.logits(PROMPT)
            assert net.is_asked
            assert torch.equal(llm.logits(PROMPT), wanted)
    finally:
        hosts.close()


@pytest.mark.parametrize(("wire", "placement"), [("f32", "hosts"), ("bf16", "hosts"), ("int8", "auto")])
def test_what_fits_is_in_vram(wire: str, placement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Placement auto fills VRAM with whole layers, placement hosts leaves it to everything else; a lost host's experts
    go to the other, and what is in VRAM stays there."""
    monkeypatch.setattr(balance, "shares", lambda takers: [1 / len(takers)] * len(takers))
    hosts = ThreadHosts("demo", 2)
    try:
        limit = {} if placement == "hosts" else {"vram_limit": _room_for_some()}
        with coordinator(hosts, placement=placement, wire=wire, host_timeout=5.0, **BESIDE, **limit) as llm:
            layers = [row for row in llm.parts.placement.experts if row]
            in_vram = [row for row in layers if Tier.GPU0 in row]
            assert all(set(row) == {Tier.GPU0} for row in in_vram)
            assert (0 < len(in_vram) < len(layers)) == (placement == "auto")
            first = said(llm)
            if wire == "f32":
                with LLM("demo", device="simulated", max_context=128, no_measure=True, cpu_moe=True) as other:
                    assert first == said(other)
            last = llm.ledger.last
            assert {GPU_HBM, NET, D2H, H2D} <= last.bytes.keys()
            for work in last.layers:
                is_here = Tier.GPU0 in llm.parts.placement.experts[work.layer]
                assert bool(work.hosts) != is_here
                assert work.pairs[GPU_HBM] == (work.tokens * llm.spec.moe.top_k if is_here else 0)
            hosts.end("h2")
            again = said(llm)
            assert again == first or wire != "f32"
    finally:
        hosts.close()


def _room_for_some() -> float:
    """Gigabytes that hold all but the experts, and those of three layers or so."""
    with LLM("demo", device="simulated", max_context=128, no_measure=True, cpu_moe=True) as llm:
        memory = llm.parts.memory_plan
        return (memory.memory[Tier.GPU0].total + 3.5 * max(memory.experts)) / 1e9


@pytest.mark.parametrize("variant", ["deepseek_v3", "gpt_oss", "qwen3_next"])
def test_other_families(variant: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Shared experts, latents and biases: the tokens of one machine with the same experts in VRAM."""
    model = checkpoints(variant)
    some = {"layers": "all", "experts": [0, 2], "tier": "gpu0"}
    path = placed(tmp_path / "hosts.json", some, default="host1")
    alone = placed(tmp_path / "alone.json", some, default="cpu")
    prompts = [[5, 7, 9] * 9, [3, 1]]
    with LLM(model, no_measure=True, placement=str(alone), **BESIDE) as llm:
        texts = [r.token_ids for r in llm.generate(prompts, GREEDY)]
    hosts = ThreadHosts(model, 1)
    try:
        with coordinator(hosts, placement=str(path), **BESIDE) as llm:
            assert [r.token_ids for r in llm.generate(prompts, GREEDY)] == texts
    finally:
        hosts.close()


def test_bytes_and_prediction(tmp_path: Path) -> None:
    """The ledger has each side's experts, by hand; the start measures hosts, and passes have a prediction with their
    part; the start-up table says what lies where."""
    path = placed(tmp_path / "hosts.json", HALF, WHOLE, default="host1")
    hosts = ThreadHosts("demo", 1)
    try:
        with coordinator(hosts, placement=str(path), no_measure=False, link_limit=None, **BESIDE) as llm:
            with llm.ledger.recording() as passes:
                llm.generate("In the beginning", GREEDY)
            done = next(one for one in passes if one.phase == "decode")
            sizes, K, D = llm.parts.memory_plan.experts, llm.spec.moe.top_k, llm.spec.hidden
            counts = [len(row) for row in llm.parts.placement.experts]
            in_vram = sum(one.pairs[GPU_HBM] * sizes[one.layer] // counts[one.layer] for one in done.layers)
            asked = [one for one in done.layers if one.layer not in WHOLE["layers"]]
            assert sum(one.bytes[GPU_HBM]["experts"] for one in done.layers) == in_vram
            assert sum(one.pairs[GPU_HBM] + one.pairs.get(NET, 0) for one in done.layers) == K * len(done.layers)
            assert sum(one.bytes[D2H]["experts"] for one in asked) == 4 * D * len(asked)
            assert (
                CPU_DRAM not in done.bytes
                or "experts" not in done.bytes[CPU_DRAM]
                or not done.bytes[CPU_DRAM]["experts"]
            )
            assert llm.parts.network is not None
            assert llm.parts.network.costs is not None
            table = [(row.what, row.device) for row in generate_report.placement_rows(llm)]
            assert any("experts" in what and where == "gpu0" for what, where in table)
            assert any("experts" in what and where == "host h1" for what, where in table)
    finally:
        hosts.close()


@pytest.mark.parametrize(("options", "message"), [
    ({"policy": "lru"}, "policy rules a cache on this machine"),
    ({"tensor_split": "1,1"}, "tensor_split is not there beside hosts"),
    ({"stream_from": 4}, "stream_from is not there beside hosts"),
    ({"split_by": "layers"}, "split_by 'layers' leaves out every GPU: leave out device 'simulated', or split_by"),
    ({"handoff": "memop"}, "handoff is not there beside hosts"),
])  # fmt: skip
def test_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        LLM("demo", device="simulated", hosts=1, listen="127.0.0.1:1", host_wait=0.1, **options)


def test_copies_of_what_is_in_vram(tmp_path: Path) -> None:
    path = placed(tmp_path / "hosts.json", {"layers": 0, "experts": 0, "tier": ["gpu0", "host1"]}, default="host1")
    with pytest.raises(OptionError, match="what lies in VRAM has no copy"):
        LLM("demo", hosts=1, placement=str(path), listen="127.0.0.1:1", host_wait=0.1, **BESIDE)


def test_nothing_left_for_hosts() -> None:
    with pytest.raises(OptionError, match="the GPU holds all experts"):
        LLM("demo", hosts=1, placement="auto", listen="127.0.0.1:1", host_wait=0.1, **BESIDE)


def test_hosts_that_do_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the coordinator is to compute all that is not in VRAM, that is in RAM once."""
    monkeypatch.setattr(balance, "shares", lambda takers: [1.0, *[balance.LEAST] * (len(takers) - 1)])
    hosts = ThreadHosts("demo", 1)
    try:
        with coordinator(hosts, placement="auto", vram_limit=_room_for_some(), **BESIDE) as llm:
            assert Tier.NET not in llm.parts.placement.tiers
            banks = [layer.experts.banks for layer in llm.parts.weights.layers if layer.experts is not None]
            held = [bank.data.device.type for row in banks for name, bank in row.items() if name != "gpu0"]
            assert held
            assert set(held) == {"meta"}
            assert llm.parts.expert_arena is None
            first = said(llm)
        with LLM("demo", device="simulated", max_context=128, no_measure=True, cpu_moe=True) as other:
            assert first == said(other)
    finally:
        hosts.close()
