"""A model's layers as the ops want them: weights, parts of the cache, tables and constants, put together once at
load."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ...kernels.decoder_layer import AttentionBlock, Layer, Router, Stack
from ...kernels.packed import ExpertBank
from ...loaders.spec import ModelSpec
from ...loaders.weights.model_weights import LayerWeights, ModelWeights
from . import rope
from .kv_cache import KVCache


def make_stack(
    spec: ModelSpec, weights: ModelWeights, cache: KVCache, max_context: int, put: Callable[[Tensor], Tensor]
) -> Stack:
    """All layers, for positions below `max_context`; `put` brings a tensor to the device of the weights."""
    turns = tuple(map(put, rope.tables(spec.rope, max_context)))
    return Stack(layers=tuple(_layer(spec, layer, cache.layers[i], turns) for i, layer in enumerate(weights.layers)))


def _layer(spec: ModelSpec, layer: LayerWeights, kv: tuple[Tensor, Tensor], turns: tuple[Tensor, ...]) -> Layer:
    bank = layer.experts if isinstance(layer.experts, ExpertBank) else None  # else the backend has it
    return Layer(block=_block(spec, layer, kv, turns), bank=bank, mlp=layer.mlp, shared_gate=layer.shared_gate)


def _block(
    spec: ModelSpec, layer: LayerWeights, kv: tuple[Tensor, Tensor], turns: tuple[Tensor, ...]
) -> AttentionBlock:
    moe, router = spec.moe, None
    if layer.router is not None:
        router = Router(matrix=layer.router, top_k=moe.top_k, scoring=moe.scoring, renormalise=moe.renormalise)
    return AttentionBlock(
        heads=spec.attention.heads,
        pre_norm=layer.attn_norm,
        qkv=layer.qkv,
        qkv_bias=layer.qkv_bias,
        q_norm=layer.q_norm,
        k_norm=layer.k_norm,
        o=layer.o,
        o_bias=layer.o_bias,
        post_norm=layer.mlp_norm,
        k_PGBd=kv[0],
        v_PGBd=kv[1],
        cos_Pr=turns[0],
        sin_Pr=turns[1],
        eps=spec.norm_eps,
        clip=spec.attention.clip,
        scale=spec.attention.scale,
        residual_scale=spec.residual_scale,
        router=router,
    )
