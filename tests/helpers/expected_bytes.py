"""The bytes of a pass, predicted from choices and a placement alone: what memories read, what links carry. Tests hold
the ledger to it.

    memory of a tier    distinct experts there * bytes of an expert; at home also dense weights, cache, head
    d2h                 where the CPU has experts of the layer: hidden states, ids, weights; else the ids, to be booked
                        largest logit and its place of every sampled row
    h2d                 the CPU's part of the sum, if one of the chosen experts is there
                        inputs: token ids (or rows of the embedding, if it is in RAM), positions, slots, page tables
    copied experts      of RAM, to be computed on the GPU: over h2d, and read there; of a layer that is streamed the CPU
                        gets nothing, so only ids go down; of a layer after one that chose nearly all, the first ones
                        whether they are chosen or not
    d2d                 a layer with experts on the second GPU: hidden states, ids, weights, and its part of the sum
    back

The ledger counts the same from tensors that were read and sent (`engine/model/inputs.py`,
`engine/experts/tiered.py`); the two agree to the byte. What a pass reads besides experts both take from
`engine/ledger/pass_bytes.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headrace.engine.experts.offload_plan import NONE, OffloadPlan, next_in_ram
from headrace.engine.ledger.pass_bytes import (
    EXPERTS,
    INPUTS,
    ROUTING,
    SAMPLES,
    UNCHOSEN,
    cache_sizes,
    common_bytes,
    dense_sizes,
)
from headrace.engine.ledger.passes import CPU_DRAM, D2D, D2H, H2D, Bytes
from headrace.engine.placement.placement import Placement, Tier
from headrace.kernels import ExpertLayout
from headrace.kernels.formats import KVFormat
from headrace.loaders.spec import ModelSpec
from headrace.loaders.weights.model_weights import Formats, allocate

F32, I32, I64 = 4, 4, 8  # bytes


def pass_bytes(
    spec: ModelSpec,
    formats: Formats,
    kv_format: KVFormat,
    *,
    tokens: int,
    contexts: Sequence[int],
    distinct_experts: Sequence[int],
    logits: bool = True,
) -> Bytes:
    """Bytes of one pass with everything in RAM: `tokens` new tokens, the cache lengths after the pass by sequence, and
    how many distinct experts each MoE layer chose (0 in the last, if it is one, where no logits are wanted)."""
    weights = allocate(spec, formats, "meta")
    banks = [layer.experts for layer in weights.layers if layer.experts is not None]
    sizes, cache = dense_sizes(weights), cache_sizes(spec, kv_format)
    groups = {EXPERTS: sum(n * bank.layout.bytes for n, bank in zip(distinct_experts, banks, strict=True))}
    common = common_bytes(sizes, cache, spans=spans_of(tokens, contexts), logits=logits)
    return {CPU_DRAM: {**groups, **common[CPU_DRAM]}}


def spans_of(tokens: int, contexts: Sequence[int]) -> list[tuple[int, int]]:
    """New tokens and cache lengths by sequence: all but one of the tokens are the first one's."""
    others = len(contexts) - 1
    return [(tokens - others if i == 0 else 1, context) for i, context in enumerate(contexts)]


@dataclass(frozen=True, kw_only=True)
class PassShape:
    """One pass: new tokens, cache lengths after it by sequence, rows whose logits are wanted, of these how many are
    sampled with other rules than the largest logit; and the pages of the longest sequence."""

    tokens: int
    contexts: Sequence[int]
    rows: int
    drawn: int = 0
    pages: int


def placed_bytes(
    spec: ModelSpec,
    formats: Formats,
    kv_format: KVFormat,
    placement: Placement,
    shape: PassShape,
    chosen: Sequence[Sequence[int]],
    offload: OffloadPlan = NONE,
) -> Bytes:
    """Bytes by memory or link, and group. `chosen`: by layer the distinct experts that were chosen, none in a layer
    without experts or that did not run. `offload`: which of those in RAM are copied."""
    found: Bytes = {}

    def add(channel: str, group: str, size: int) -> None:
        if size:
            groups = found.setdefault(channel, {})
            groups[group] = groups.get(group, 0) + size

    main = placement.main
    table = Tier.CPU if Tier.CPU in placement.tiers and not spec.tied_head else main
    weights = allocate(spec, formats, "meta")
    common = common_bytes(
        dense_sizes(weights),
        cache_sizes(spec, kv_format),
        spans=spans_of(shape.tokens, shape.contexts),
        logits=shape.rows > 0,
        main=main.channel,
        table=table.channel,
    )
    for channel, groups in common.items():
        for group, size in groups.items():
            add(channel, group, size)
    layout = ExpertLayout(format=formats.experts, hidden=spec.hidden, width=spec.moe.width)
    prefetched: set[int] = set()  # layers whose first experts are copied before they are chosen
    for layer, ids in enumerate(chosen):
        here = [placement.experts[layer][e] for e in ids]
        copied = here.count(Tier.CPU) if offload.streams(_tokens(spec, shape, layer)) else 0
        for tier in placement.tiers_of(layer):
            add(tier.channel, EXPERTS, (here.count(tier) - (copied if tier is Tier.CPU else 0)) * layout.bytes)
        if copied:
            add(main.channel, EXPERTS, copied * layout.bytes)
            add(H2D, EXPERTS, copied * layout.bytes)
        if layer in prefetched:
            add(H2D, UNCHOSEN, _unchosen(placement, layer, ids, offload) * layout.bytes)
        if copied and offload.streams(shape.tokens) and offload.prefetches(copied, placement.count(layer, Tier.CPU)):
            prefetched.add(next_in_ram(placement, layer) or -1)
    if main is not Tier.CPU:
        _add_links(add, spec, placement, shape, chosen, table, offload)
    return found


def _unchosen(placement: Placement, layer: int, ids: Sequence[int], offload: OffloadPlan) -> int:
    """Experts of a layer that are copied early, but those that it chooses."""
    prefetched = offload.prefetched(placement.count(layer, Tier.CPU))
    numbers = placement.local_ids(layer, Tier.CPU)
    return prefetched - sum(0 <= numbers[e] < prefetched for e in ids)


def _tokens(spec: ModelSpec, shape: PassShape, layer: int) -> int:
    """Tokens that choose experts in a layer: in the last one those whose logits are wanted."""
    return shape.rows if layer == len(spec.layers) - 1 else shape.tokens


def _add_links(
    add: Callable[[str, str, int], None],
    spec: ModelSpec,
    placement: Placement,
    shape: PassShape,
    chosen: Sequence[Sequence[int]],
    table: Tier,
    offload: OffloadPlan,
) -> None:
    """What crosses: the inputs of the pass, the hand-off of every layer that runs, what sampling takes."""

    T, S = shape.tokens, len(shape.contexts)
    ids = T * (spec.hidden * F32 if table is Tier.CPU else I64)
    add(H2D, INPUTS, ids + T * (I32 + I64) + (S + 1 + S + S * shape.pages) * I32 + shape.rows * I64)
    add(D2H, SAMPLES, shape.rows * (F32 + I64) + shape.drawn * spec.vocab * F32)
    for layer, experts in enumerate(chosen):
        if not experts:
            continue
        tokens = _tokens(spec, shape, layer)
        hidden, routing = tokens * spec.hidden * F32, tokens * spec.moe.top_k * (I32 + F32)
        tiers = placement.tiers_of(layer)
        in_ram = sum(placement.experts[layer][e] is Tier.CPU for e in experts)
        if Tier.CPU in tiers and not offload.streams(tokens):
            add(D2H, EXPERTS, hidden)
            add(D2H, ROUTING, routing)
            if in_ram:
                add(H2D, EXPERTS, hidden)
        else:
            add(D2H, ROUTING, routing // 2)
        if Tier.GPU1 in tiers:
            add(D2D, EXPERTS, 2 * hidden)
            add(D2D, ROUTING, routing)
