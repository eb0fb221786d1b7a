"""A GPU at the coordinator of a plan: which experts lie in its VRAM, and what crosses the link for the others.

    down   hidden states, choices and weights of every token, for layers that ask hosts; else the choices alone
    up     the sum of what hosts and the CPU computed

As a run has it (`engine/hosts/vram/beside_gpu.py`): a layer whose experts all lie in VRAM asks no host.
"""

from __future__ import annotations

from collections.abc import Iterator

from ....loaders.architecture.architecture import Architecture, Layer
from ...bandwidth_model.hardware import Device
from ...bandwidth_model.roofline import Link
from ...ledger.passes import D2H, H2D
from ...placement.placement import fill_from_last
from .. import layouts as placing
from ..layouts import CPU, Demand, Placement
from ..speed import Model
from ..storage import Storage

GPU = "gpu0"
F32, I32 = 4, 4  # bytes
EXPERTS, ROUTING = "experts", "routing"


def placement(name: str, storage: Storage, gpu: Device, demand: Demand, *, fills: bool) -> Placement:
    """All but experts on the GPU, and those of whole layers from the last one down, if it is to be filled."""
    room, count = placing.usable(gpu), len(storage.layers)
    used = storage.common + sum(demand.cache) + demand.activations
    sizes = [layer.routed if layer.experts else 0 for layer in storage.layers]
    placed = fill_from_last(sizes, {GPU: room}, {GPU: used}, first=0 if fills else count)
    experts = tuple(CPU if tier is None and size else GPU for tier, size in zip(placed, sizes, strict=True))
    return Placement(name=name, common=(GPU,) * count, experts=experts, outside=GPU)


def layer_bytes(hidden: int, top_k: int, tokens: int, asks: bool) -> dict[str, dict[str, int]]:
    """Of a layer with experts, by link and group. asks: some of its experts lie outside of VRAM."""
    choices = tokens * top_k
    if not asks:
        return {D2H: {ROUTING: choices * I32}}
    rows = tokens * hidden * F32
    return {D2H: {EXPERTS: rows, ROUTING: choices * (I32 + F32)}, H2D: {EXPERTS: rows}}


def layers_bytes(model: Architecture, placed: Placement, tokens: int) -> dict[str, dict[str, int]]:
    """The same of all layers together."""
    found: dict[str, dict[str, int]] = {}
    for tier, layer in zip(placed.experts, model.layers, strict=True):
        if layer.experts is None:
            continue
        for link, groups in layer_bytes(model.hidden, layer.experts.top_k, tokens, tier == CPU).items():
            for group, size in groups.items():
                found.setdefault(link, {})[group] = found.get(link, {}).get(group, 0) + size
    return found


def crossing(engine: Model, layer: Layer, tokens: int) -> tuple[list[Link], list[Link]]:
    """Down and up, of a layer that asks hosts; nothing where the link of the GPU is not known."""
    assert layer.experts is not None, "a dense layer"
    sent = layer_bytes(engine.model.hidden, layer.experts.top_k, tokens, asks=True)

    def links(name: str) -> Iterator[Link]:
        if name in engine.hardware.links:
            yield Link(name, sum(sent[name].values()))

    return [*links(D2H)], [*links(H2D)]
