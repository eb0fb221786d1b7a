"""A model's layers as the ops want them: weights, parts of the cache, tables and constants, put together once at
load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...kernels.decoder_layer import AttentionBlock, Block, FeedBlock, Layer, Router, Stack
from ...kernels.mixers import ConvBlock, DeltaBlock, LatentBlock, SpaceBlock
from ...kernels.packed import ExpertBank
from ...kernels.sparse.indexer import Indexer
from ...kernels.sparse.log_positions import ByLogs
from ...kernels.sparse.pools import Pools
from ...loaders.spec import (
    NO_ROPE,
    AttentionSpec,
    CompressedSpec,
    DeltaSpec,
    LatentSpec,
    LayerSpec,
    MixerSpec,
    ModelSpec,
    MoeSpec,
    Recurrent,
    RopeSpec,
    SpaceSpec,
    Temperature,
)
from ...loaders.weights.mixers import (
    AttentionWeights,
    CompressedWeights,
    ConvWeights,
    DeltaWeights,
    LatentWeights,
    MixerWeights,
    SpaceWeights,
)
from ...loaders.weights.model_weights import LayerWeights, ModelWeights
from . import rope
from .kv_cache import Compressed, KeysAndValues, KVCache, Latents, LayerCache, States
from .prepared import compressed, grams, tables

Turns = tuple[Tensor, Tensor]  # cos and sin
INDEX_EPS = 1e-6  # of the LayerNorm of an indexer's keys, in every model


def make_stack(
    spec: ModelSpec,
    weights: ModelWeights,
    cache: KVCache,
    max_context: int,
    put: Callable[[Tensor], Tensor],
    may_make_keys: bool = True,
    first: int = 0,
) -> Stack:
    """All layers, for positions below `max_context`; `put` brings a tensor to the device of the weights. may_make_keys:
    of prompts on latents, where that is less work. first: the number of the first one, where spec is a part."""
    shared = _shared(spec, weights.turns, max_context, put)
    all_of = zip(spec.layers, weights.layers, cache.layers, strict=True)
    layers = [_layer(spec, *one, shared, number) for number, one in enumerate(all_of, first)]
    for i, table in weights.tables.items():
        block = replace(layers[i].block, grams=grams.prepared(spec, i, weights.layers[i], cache.grams[i], table))
        layers[i] = replace(layers[i], block=block)
    return Stack(layers=tuple(layers if may_make_keys else map(_on_latents_alone, layers)))


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What several layers have in common: cos and sin of each rope, numbers by position of each temperature, weights of
    norms without any by the size of a head."""

    turns: Mapping[RopeSpec, Turns]
    temperatures: Mapping[Temperature | None, Tensor]
    ones: Mapping[int, Tensor]


def _shared(spec: ModelSpec, learned: Tensor | None, max_context: int, put: Callable[[Tensor], Tensor]) -> Shared:
    attending = [mixer for mixer in spec.mixers if not isinstance(mixer, Recurrent)]
    plain = [it for it in attending if isinstance(it, AttentionSpec) and (it.v_norm or it.qk_norm == "plain")]
    sizes = {it.head_dim for it in plain} | {it.head_dim for it in attending if isinstance(it, CompressedSpec)}
    turns = {one: rope.tables(one, max_context, learned) for one in {mixer.rope for mixer in attending} | {NO_ROPE}}
    warmth = {mixer.temperature for mixer in attending if mixer.temperature is not None}
    return Shared(
        turns={one: (put(cos), put(sin)) for one, (cos, sin) in turns.items()},
        temperatures={one: put(rope.temperatures(one, max_context)) for one in warmth},
        ones={size: put(torch.ones(size)) for size in sizes},
    )


def _on_latents_alone(layer: Layer) -> Layer:
    """A GPU has no room for keys and values that are made, and which prompts want them says a value on the host. Such
    keys are rounded, and which tokens see them goes by how a prompt is cut: a deterministic run has none."""
    if not isinstance(layer.block, LatentBlock):
        return layer
    return replace(layer, block=replace(layer.block, may_make_keys=False))


def _layer(
    spec: ModelSpec,
    layer: LayerSpec,
    weights: LayerWeights,
    cache: LayerCache,
    shared: Shared,
    number: int,
) -> Layer:
    bank = weights.experts if isinstance(weights.experts, ExpertBank) else None  # else the backend has it
    common: dict[str, Any] = {
        "pre_norm": weights.attn_norm,
        "post_norm": weights.mlp_norm,
        "pre_bias": weights.attn_norm_bias,
        "post_bias": weights.mlp_norm_bias,
        "eps": spec.norm_eps,
        "residual_scale": spec.residual_scale,
        "out_norm": weights.out_norm,
        "router_norm": weights.router_norm,
        "streams": grams.streams(spec, weights, number),
        "router": None if not isinstance(layer.ffn, MoeSpec) else _router(layer.ffn, weights),
    }
    if layer.mixer is None or weights.mixer is None:
        block: Block = FeedBlock(o=None, o_bias=None, **common)
    else:
        block = _block(layer.mixer, weights.mixer, cache, shared, common)
    return Layer(
        block=block, bank=bank, mlp=weights.mlp, shared_gate=weights.shared_gate, tail=weights.tail,
        around=weights.around,
    )  # fmt: skip


def _router(moe: MoeSpec, weights: LayerWeights) -> Router:
    assert weights.router is not None, "a layer with experts and without a router"
    return Router(
        matrix=weights.router, bias_E=weights.router_bias, choice_bias_E=weights.choice_bias, top_k=moe.top_k,
        scoring=moe.scoring, renormalise=moe.renormalise, groups=moe.groups, top_groups=moe.top_groups,
        group_score=moe.group_score, scale=moe.scale, factors_E=weights.factors,
        jitter=moe.jitter, table_VK=tables.checked(weights.table, moe.experts),
    )  # fmt: skip


def _block(mixer: MixerSpec, it: MixerWeights, cache: LayerCache, shared: Shared, common: dict[str, Any]) -> Block:
    """The block of a layer's kind of mixer."""
    if isinstance(mixer, AttentionSpec) and isinstance(it, AttentionWeights) and isinstance(cache, KeysAndValues):
        return _attention(mixer, it, cache, shared, common)
    if isinstance(mixer, LatentSpec) and isinstance(it, LatentWeights) and isinstance(cache, Latents):
        return _latent(mixer, it, cache, shared, common)
    if isinstance(mixer, CompressedSpec) and isinstance(it, CompressedWeights) and isinstance(cache, Compressed):
        return compressed.block(mixer, it, cache, shared.turns[mixer.rope], shared.ones[mixer.head_dim], common)
    assert isinstance(cache, States)
    if isinstance(it, ConvWeights):
        return _conv(it, cache, common)
    if isinstance(mixer, SpaceSpec) and isinstance(it, SpaceWeights):
        return _space(mixer, it, cache, common)
    assert isinstance(mixer, DeltaSpec)
    assert isinstance(it, DeltaWeights)
    return _delta(mixer, it, cache, common)


def _attention(
    mixer: AttentionSpec, it: AttentionWeights, cache: KeysAndValues, shared: Shared, common: dict[str, Any]
) -> AttentionBlock:
    """Where norms come last, the turn goes first, and the one behind the norms does nothing. Norms without weights
    stand in front of the turn anyway, which changes no length."""
    cos, sin = shared.turns[NO_ROPE if mixer.norms_last else mixer.rope]
    plain = shared.ones[mixer.head_dim] if mixer.qk_norm == "plain" else None
    return AttentionBlock(
        heads=mixer.heads, qkv=it.qkv, qkv_bias=it.qkv_bias, q_norm=it.q_norm if plain is None else plain,
        k_norm=it.k_norm if plain is None else plain, v_norm=shared.ones[mixer.head_dim] if mixer.v_norm else None,
        o=it.o, o_bias=it.o_bias, k_PGBd=cache.k, v_PGBd=cache.v, cos_Pr=cos, sin_Pr=sin, clip=mixer.clip,
        scale=mixer.scale, window=mixer.window, chunk=mixer.chunk, kind=cache.kind, sinks_N=it.sinks, gate=it.gate,
        soft=mixer.soft_gate,
        shared=not mixer.own_values, v_scale=mixer.v_scale,
        first=shared.turns[mixer.rope] if mixer.norms_last else None,
        blocks=grams.blocks(mixer, it, cache, shared.turns[mixer.rope], common["eps"]),
        temperature_P=shared.temperatures.get(mixer.temperature), **common,
    )  # fmt: skip


def _latent(
    mixer: LatentSpec, it: LatentWeights, cache: Latents, shared: Shared, common: dict[str, Any]
) -> LatentBlock:
    turns = shared.turns[mixer.rope]
    return LatentBlock(
        heads=mixer.heads, q_a=it.q_a, q_a_norm=it.q_a_norm, q_a_bias=it.q_a_bias, q=it.q, kv_a=it.kv_a,
        kv_a_bias=it.kv_a_bias, kv_a_norm=it.kv_a_norm, k_up=it.k_up, v_up=it.v_up, o=it.o, o_bias=it.o_bias,
        rows_P1Bl=cache.rows, cos_Pr=turns[0], sin_Pr=turns[1], norm_eps=mixer.norm_eps, scale=mixer.scale,
        temperature_P=shared.temperatures.get(mixer.temperature), gate=it.gate,
        by_logs=_by_logs(it.warmth, it.warmth_bias),
        top=mixer.indexer.top if mixer.indexer else None, indexer=_indexer(mixer, it, cache, turns), **common,
    )  # fmt: skip


def _indexer(mixer: LatentSpec, it: LatentWeights, cache: Latents, turns: Turns) -> Indexer | None:
    """None: the layer has none of its own."""
    if it.index_q is None or mixer.indexer is None:
        return None
    assert it.index_k is not None
    assert it.index_weights is not None
    assert it.index_norm is not None
    assert it.index_norm_bias is not None
    return Indexer(
        heads=mixer.indexer.heads, q=it.index_q, k=it.index_k, norm_e=it.index_norm, bias_e=it.index_norm_bias,
        eps=INDEX_EPS, weights=it.index_weights, keys_P1Be=cache.keys, cos_Pr=turns[0], sin_Pr=turns[1],
        in_norm_D=it.index_in_norm, in_bias_D=it.index_in_bias,
        by_logs=_by_logs(it.index_warmth, it.index_warmth_bias),
        pools=None if it.index_gate is None or it.index_places is None else Pools(it.index_gate, it.index_places),
    )  # fmt: skip


def _by_logs(weight_N: Tensor | None, bias_N: Tensor | None) -> ByLogs | None:
    return None if weight_N is None or bias_N is None else ByLogs(weight_N, bias_N)


def _conv(it: ConvWeights, cache: States, common: dict[str, Any]) -> ConvBlock:
    return ConvBlock(
        rows=it.rows, rows_bias=it.rows_bias, conv_CW=it.conv, conv_bias_C=it.conv_bias, o=it.o, o_bias=it.o_bias,
        inputs_LCw=cache.inputs, **common,
    )  # fmt: skip


def _space(mixer: SpaceSpec, it: SpaceWeights, cache: States, common: dict[str, Any]) -> SpaceBlock:
    assert cache.state is not None, "a state space without a state"
    return SpaceBlock(
        groups=mixer.groups, dt_range=mixer.dt_range, rows=it.rows, rows_bias=it.rows_bias, conv_CW=it.conv,
        conv_bias_C=it.conv_bias, rate_H=it.rate, dt_bias_H=it.dt_bias, skip_H=it.skip, norm_V=it.norm, o=it.o,
        o_bias=it.o_bias, inputs_LCw=cache.inputs, state_LHkv=cache.state, **common,
    )  # fmt: skip


def _delta(mixer: DeltaSpec, it: DeltaWeights, cache: States, common: dict[str, Any]) -> DeltaBlock:
    assert cache.state is not None, "a delta rule without a state"
    return DeltaBlock(
        k_heads=mixer.k_heads, k_dim=mixer.k_dim, in_turns=mixer.in_turns, qkv=it.qkv, z=it.z, ba=it.ba,
        conv_CW=it.conv, rate_H=it.rate,
        dt_bias_H=it.dt_bias, norm_v=it.norm, o=it.o, o_bias=None, inputs_LCw=cache.inputs, state_LHkv=cache.state,
        decay=it.decay, decay_low=it.decay_low, z_low=it.z_low, least=mixer.least,
        sigmoid=mixer.sigmoid,
        **common,
    )  # fmt: skip
