"""headrace plan --hosts with a GPU at the coordinator, beside the run: what lies in VRAM, and every byte of a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from host_processes import GREEDY, PROMPT, coordinator
from thread_hosts import ThreadHosts

from headrace import LLM
from headrace.engine.bandwidth_model.hardware import Device, Hardware, Kind, exactly
from headrace.engine.bandwidth_model.network import balance
from headrace.engine.bandwidth_model.network.hops import Hop
from headrace.engine.ledger.passes import CPU_DRAM, D2H, GPU_HBM, H2D, NET, Pass
from headrace.engine.placement.placement import Tier
from headrace.engine.placement.tier_memory import GPU_RESERVE
from headrace.engine.planning import plan as planning
from headrace.engine.planning.hosts import comparison
from headrace.engine.planning.hosts.comparison import Hosted
from headrace.engine.planning.speed import Model, Workload
from headrace.loaders import model_source

Checkpoints = Callable[[str], Path]
Bytes = dict[str, dict[str, int]]
BESIDE: dict[str, Any] = {"max_context": 128, "max_sequences": 1, "device": "simulated"}
WHOLE_LAYERS = 1.5  # so many have room in VRAM


def device(kind: Kind, memory: float) -> Device:
    return Device(name=kind, kind=kind, memory=int(memory), nominal=1e9, bandwidth=exactly(1e9), link=exactly(1e9))


def planned(model: str, context: int, placement: str, wire: str) -> tuple[Hosted, Bytes]:
    """Of a coordinator whose RAM has no room for experts, and whose VRAM has it for a layer or so beyond all else."""
    source = model_source.find(model)
    storage, _ = planning.sizes(source, "native")
    described, work = source.described.architecture, Workload(context=context, batch=1, prompt=1)
    needs = planning.needs(described, work, None)
    common = storage.common + sum(needs.cache) + needs.activations
    vram = GPU_RESERVE + common + WHOLE_LAYERS * max(layer.routed for layer in storage.layers)
    hardware = Hardware(name="here", cpu=device("cpu", storage.held / 0.95 + 1), gpus=(device("gpu", vram),))
    hop = Hop(name="h1", device=device("cpu", 1e12), rate=exactly(1e9), round_trip=exactly(1e-4))
    engine = Model(described, storage, hardware)
    found = comparison.compare(engine, (hop,), wire, lambda _: needs, work, fills_vram=placement == "auto")
    return found, found.bytes_per_token(found.by_experts, engine, work)


def room_for_some(hosts: ThreadHosts, options: dict[str, Any]) -> float:
    """Gigabytes of VRAM for as many layers."""
    with coordinator(hosts, **options | {"placement": "hosts"}) as llm:
        memory = llm.parts.memory_plan
        return (memory.memory[Tier.GPU0].total + WHOLE_LAYERS * max(memory.experts)) / 1e9


def a_step(llm: LLM) -> Pass:
    with llm.ledger.recording() as passes:
        llm.generate([PROMPT[:3]], GREEDY)
    return [one for one in passes if one.phase == "decode"][2]


@pytest.mark.parametrize(
    ("variant", "placement", "wire"),
    [("", "hosts", "f32"), ("", "auto", "bf16"), ("qwen3_moe", "auto", "f32"), ("deepseek_v3", "auto", "int8"),
     ("qwen3_next", "auto", "f32"), ("gpt_oss", "hosts", "int8")],
)  # fmt: skip
def test_bytes_are_those_of_the_run(
    variant: str, placement: str, wire: str, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balance, "shares", lambda takers, total=1.0: [*[balance.LEAST] * (len(takers) - 1), total])
    model = str(checkpoints(variant)) if variant else "demo"
    hosts, options = ThreadHosts(model, 1), {"placement": placement, "wire": wire, "kv_format": "bf16", **BESIDE}
    try:
        limit = {"vram_limit": room_for_some(hosts, options)} if placement == "auto" else {}
        with coordinator(hosts, **options, **limit) as llm:
            step, rows, memory = a_step(llm), llm.parts.placement.experts, llm.parts.memory_plan
            sizes = [size // max(1, len(row)) for size, row in zip(memory.experts, rows, strict=True)]
            top_k, tied = llm.spec.moe.top_k, llm.spec.tied_head
    finally:
        hosts.close()
    found, counted = planned(model, step.context, placement, wire)
    placed = found.by_experts.placement
    here = [i for i, row in enumerate(rows) if Tier.GPU0 in row]
    assert here == [i for i, row in enumerate(rows) if row and placed.experts[i] == "gpu0"]
    assert len(here) == found.layers_in_vram == (placement == "auto")
    in_vram, planned_vram = memory.memory[Tier.GPU0].needed, found.by_experts.memory["vram"].needed
    assert all(in_vram.get(what, 0) == planned_vram.get(what, 0) for what in ("common weights", "experts"))
    assert counted[GPU_HBM] == step.bytes[GPU_HBM]
    assert counted[CPU_DRAM] == {group: size for group, size in step.bytes.get(CPU_DRAM, {}).items() if size}
    assert tied != bool(counted[CPU_DRAM])
    assert counted[D2H] == {group: size for group, size in step.bytes[D2H].items() if group != "samples"}
    assert counted[H2D] == {group: size for group, size in step.bytes[H2D].items() if group != "inputs"}
    assert sum(counted[NET].values()) == step.total(NET)
    asked = [i for i, row in enumerate(rows) if Tier.NET in row]
    assert counted["h1"] == {"experts": sum(top_k * sizes[i] for i in asked)}
