"""Kernels of a GPU compiled while a model is loaded, not at the first prompt of each kind, which would wait 10 to 40 s.

Which variants of a kernel there are is the kernels' affair; here every pass that the options allow is asked, by its
sizes: tokens, sequences, pages of the longest one. Thresholds between variants are not known here, so each size is
taken at every power of two, one above it, and at its most. Passes go to tensors without memory
(`kernels/gpu/ahead.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...errors import short, visible
from ...kernels import Ops
from ...kernels.decoder_layer import AttentionBlock, Layer, Pages, Places, linear, mlp
from ...kernels.packed import ExpertBank, Matrix
from ...loaders.weights.checkpoint import Progress
from ..config import EngineConfig
from ..devices.device import Device
from ..experts.cache.cached_experts import CachedExperts, tiers_of
from ..experts.tiered import TieredExperts
from ..model.decoder import Decoder
from ..model.kv_cache import pages_for
from ..placement.placement import Tier

log = logging.getLogger("headrace")
Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The most of a pass: new tokens, sequences, pages of one sequence."""

    tokens: int
    sequences: int
    pages: int


def steps(most: int) -> list[int]:
    """1, 2, 3, 4, 5, 8, 9, 16, 17 ... up to `most`, and `most`."""
    powers = [1 << n for n in range(most.bit_length())]
    return sorted({n for power in powers for n in (power, power + 1) if n <= most} | {most})


def on_meta(value: Any) -> Any:
    """The same with tensors that have no memory, and without what a backend keeps of it."""
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if not is_dataclass(value) or isinstance(value, type):
        return value
    parts = {field.name: on_meta(getattr(value, field.name)) for field in fields(value) if field.init}
    return replace(value, **parts | ({"native": {}} if "native" in parts else {}))


def shape_of(value: Any) -> Any:
    """What two parts of a model share that are launched alike."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape), value.stride()
    if not is_dataclass(value) or isinstance(value, type):
        return repr(value)
    return tuple(shape_of(getattr(value, field.name)) for field in fields(value) if field.name != "native")


def different(values: Iterable[Any]) -> list[Any]:
    """One of each shape, without memory; None is left out."""
    return [on_meta(value) for value in {shape_of(value): value for value in values if value is not None}.values()]


def layer_calls(ops: Ops, layer: Layer, sizes: Sizes) -> Iterator[Call]:
    """A layer's attention, router and MLP, in every pass."""
    D = len(layer.block.pre_norm)
    for T in steps(sizes.tokens):
        for S in steps(min(T, sizes.sequences)):
            for pages in steps(sizes.pages) if T == S else (sizes.pages,):  # a decode step divides the context
                yield partial(_attend, ops, layer, _rows(T, D), _places(T, S, pages))
        yield partial(_after, ops, layer, _rows(T, D))


def _attend(ops: Ops, layer: Layer, x_TD: Tensor, places: Places) -> None:
    """With and without an update of the layer before."""
    kind = layer.block.kind if isinstance(layer.block, AttentionBlock) else 0
    places = replace(places, windows=(Pages(places.slots_T, places.tables_SM),) * kind)
    for update_TD in (None, x_TD):
        ops.attention_block(x_TD, update_TD, layer.block, places)


def _after(ops: Ops, layer: Layer, x_TD: Tensor) -> None:
    """What follows the routed experts, or stands for them; the router of rows that a last layer's prompt leaves; and
    the projection of those whose update is brought to them before."""
    block = layer.block
    ops.gated_add_(x_TD, x_TD)
    if block.router is not None:
        ops.route(x_TD, block.router)
    if isinstance(block, AttentionBlock) and len(x_TD) == 1:
        linear(ops, x_TD, block.qkv, block.qkv_bias)
    if layer.mlp is not None:
        gate_T1 = None if layer.shared_gate is None else ops.linear(x_TD, layer.shared_gate)
        ops.gated_add_(x_TD, mlp(ops, layer.mlp, x_TD), gate_T1)


def expert_calls(ops: Ops, bank: ExpertBank, top_k: int, tokens: int, experts: int) -> Iterator[Call]:
    """The routed experts of a bank, which may have some of `experts`, in every pass."""
    for T in steps(tokens):
        x_TD, ids_TK = _rows(T, bank.layout.hidden), torch.empty(T, top_k, dtype=torch.int32, device="meta")
        yield partial(ops.experts, x_TD, ids_TK, _rows(T, top_k), bank)
        if bank.experts < experts:
            local_E = torch.empty(experts, dtype=torch.int32, device="meta")
            yield partial(ops.experts, x_TD, ids_TK, _rows(T, top_k), bank, local_E)


def end_calls(ops: Ops, decoder: Decoder, sizes: Sizes) -> Iterator[Call]:
    """Both ends of a pass: embedding rows, if they are looked up there, logits, and the choice among them."""
    weights, D = on_meta(decoder.weights.final_norm), decoder.spec.hidden
    head, embed = on_meta(decoder.weights.head), on_meta(decoder.weights.embed)
    scale, is_here = decoder.spec.embedding_scale, decoder.device_inputs.table is decoder.device_inputs.device
    for T in steps(sizes.tokens):
        if is_here:
            yield partial(ops.embed, embed, torch.empty(T, dtype=torch.int64, device="meta"), scale)
        yield partial(ops.add_rmsnorm_, _rows(T, D), _rows(T, D), weights, decoder.spec.norm_eps, 1.0)
        yield partial(_choose, ops, head, _rows(T, D))


def _choose(ops: Ops, head: Matrix, x_TD: Tensor) -> None:
    ops.argmax(ops.linear(x_TD, head))


def _rows(rows: int, size: int) -> Tensor:
    return torch.empty(rows, size, device="meta")


def _places(tokens: int, sequences: int, pages: int) -> Places:
    i32 = partial(torch.empty, dtype=torch.int32, device="meta")
    return Places(
        positions_T=i32(tokens),
        slots_T=torch.empty(tokens, dtype=torch.int64, device="meta"),
        tables_SM=i32(sequences, pages),
        starts_S1=i32(sequences + 1),
        contexts_S=i32(sequences),
        states_S=i32(sequences),
    )


def banks_on(tiered: TieredExperts, tier: Tier) -> list[ExpertBank]:
    """The banks that a GPU computes from, one of each shape: its own, and on the main one those of copied experts, by
    the layout of their layer in RAM, one or a piece of them."""
    splits = [split for split in tiered.banks if split is not None]
    banks = [split.banks.get(tier.value) for split in splits]
    ring = tiered.ring if tiered.main.tier is tier else None
    if ring is not None:
        in_ram = dict.fromkeys(split.banks[Tier.CPU.value].layout for split in splits if Tier.CPU.value in split.banks)
        pieces = (ExpertBank.empty(layout, size, "meta") for layout in in_ram for size in {1, ring.piece})
        banks += [replace(piece, among=ring.among) for piece in pieces]
    return different(banks)


def calls(decoder: Decoder, experts: TieredExperts | CachedExperts, device: Device, sizes: Sizes) -> Iterator[Call]:
    """All that passes of these sizes ask of a GPU: experts, and on the main one all else."""
    tiered = tiers_of(experts)
    places = experts.cache.slots.banks if isinstance(experts, CachedExperts) else []
    for bank in different([*banks_on(tiered, device.tier), *places]):
        yield from expert_calls(device.ops, bank, decoder.spec.moe.top_k, sizes.tokens, decoder.spec.moe.experts)
    if device is tiered.main:
        for layer in different(decoder.stack.layers):
            yield from layer_calls(device.ops, layer, sizes)
        yield from end_calls(device.ops, decoder, sizes)


def compile_ahead(
    config: EngineConfig,
    context: int,
    decoder: Decoder,
    devices: Mapping[Tier, Device],
    progress: Progress | None,
) -> None:
    """Compiles what passes on the GPUs of a run will launch; `context`: tokens of the longest sequence. progress:
    called with kernels done and in all. Nothing to do without a GPU that has Triton's kernels."""
    experts, gpus = decoder.experts, [d for d in devices.values() if d.is_cuda and d.backend == "gpu"]
    if not gpus or not isinstance(experts, TieredExperts | CachedExperts):
        return
    from ...kernels.gpu import ahead

    tokens = max(config.prefill_chunk, config.max_sequences)
    sizes = Sizes(tokens=tokens, sequences=config.max_sequences, pages=pages_for(context))
    for device in gpus:
        with device.current(), torch.inference_mode():
            found = ahead.compile_all(ahead.wanted(calls(decoder, experts, device, sizes)), progress)
        if found.failed:
            log.warning(
                f"{len(found.failed)} kernels could not be compiled for {device.name}, and a pass that needs one will "
                f"fail; the first is {short(visible(found.failed[0]), 200)}"
            )
