"""Families with grouped-query attention in every layer, in full or over a window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..families import mimo_v2_flash as mimo
from ..families import minimax_m3 as m3
from ..families import step3p5 as step
from ..families.config_reader import ConfigReader
from ..families.window import FULL
from ..spec import QkNorm
from .architecture import Architecture, Mixer, mlp, vector
from .common import (
    Feed,
    alternate,
    decoder,
    dense,
    dense_layers,
    flag,
    head_dim,
    kv_heads,
    layer_count,
    listed,
    routed,
    sparse,
    whole,
)
from .mixers import Indexer, gqa, with_blocks

WINDOWED = ("sliding_attention", "full_attention")


def _plain(
    c: ConfigReader, *, qkv_bias: bool = False, output_bias: bool = False, qk_norm: QkNorm = "none"
) -> list[Mixer]:
    """The same full attention in every layer."""
    heads = c.integer("num_attention_heads")
    mixer = gqa(
        c.integer("hidden_size"), heads, kv_heads(c), head_dim(c),
        qkv_bias=qkv_bias, output_bias=output_bias, qk_norm=qk_norm,
    )  # fmt: skip
    return [mixer] * layer_count(c)


def glm4_moe(c: ConfigReader) -> Architecture:
    """GLM-4.5, 4.6, 4.7 and Air."""
    mixers = _plain(c, qkv_bias=c.flag("attention_bias"), qk_norm="head" if flag(c, "use_qk_norm") else "none")
    return decoder(c, mixers, _deepseek_feeds(c))


def dots1(c: ConfigReader) -> Architecture:
    bias = flag(c, "attention_bias")
    return decoder(c, _plain(c, qkv_bias=bias, output_bias=bias, qk_norm="head"), _deepseek_feeds(c))


def solar_open(c: ConfigReader) -> Architecture:
    feed = sparse(c, routed(c), shared=_shared_width(c), bias=True)
    return decoder(c, _plain(c, qkv_bias=flag(c, "attention_bias")), [feed] * layer_count(c))


def exaone_moe(c: ConfigReader) -> Architecture:
    """K-EXAONE: most layers over a window."""
    count, hidden, heads = layer_count(c), c.integer("hidden_size"), c.integer("num_attention_heads")
    kinds = listed(c, "layer_types", count, WINDOWED) or c.require("layer_types")
    full = gqa(hidden, heads, kv_heads(c), head_dim(c), qk_norm="head")
    window = c.get("sliding_window")
    swa = gqa(hidden, heads, kv_heads(c), head_dim(c), qk_norm="head", window=window) if window else full
    return decoder(c, [swa if kind == WINDOWED[0] else full for kind in kinds], _deepseek_feeds(c))


def hy_v3(c: ConfigReader) -> Architecture:
    return decoder(c, _plain(c, qk_norm="head"), _deepseek_feeds(c, default=1))


def _shared_width(c: ConfigReader) -> int:
    count = whole(c, "n_shared_experts", 0) or whole(c, "num_shared_experts", 0)
    return count * c.integer("moe_intermediate_size")


def _deepseek_feeds(c: ConfigReader, default: int | None = None) -> list[Feed]:
    """A few dense layers, then experts with a biased choice and shared experts."""
    feed = sparse(c, routed(c), shared=_shared_width(c), bias=True)
    first = dense_layers(c, default=default)
    return alternate(layer_count(c), first, dense(c) if first else feed, feed)


def gpt_oss(c: ConfigReader) -> Architecture:
    """gpt-oss: sinks, every second layer over a window, biases everywhere."""
    count, hidden = layer_count(c), c.integer("hidden_size")
    kinds = listed(c, "layer_types", count, WINDOWED) or [WINDOWED[i % 2] for i in range(count)]
    window = c.integer("sliding_window")
    bias = flag(c, "attention_bias", True)
    mixers = [
        gqa(
            hidden, c.integer("num_attention_heads"), kv_heads(c), head_dim(c), qkv_bias=bias, output_bias=bias,
            sinks=True, window=window if kind == "sliding_attention" else None,
        )
        for kind in kinds
    ]  # fmt: skip
    experts = routed(c, width="intermediate_size")
    experts = replace(experts, bias=2 * experts.width + hidden)
    return decoder(c, mixers, [sparse(c, experts, bias=True)] * count)


def minimax_m2(c: ConfigReader) -> Architecture:
    feed = sparse(c, routed(c, width="intermediate_size"), bias=True)
    return decoder(c, _plain(c, qk_norm="full" if flag(c, "use_qk_norm", True) else "none"), [feed] * layer_count(c))


def minimax_m3(c: ConfigReader) -> Architecture:
    """MiniMax-M3: in layers that say so, or else in those with experts, an indexer chooses blocks of keys."""
    c.values = m3.todays(c)
    count, hidden, heads = layer_count(c), c.integer("hidden_size"), c.integer("num_attention_heads")
    first, kinds = dense_layers(c, default=3), listed(c, "layer_types", count, (FULL, m3.SPARSE))
    full = gqa(hidden, heads, kv_heads(c), head_dim(c), qk_norm="head")
    top = c.integer("index_block_size") * c.integer("index_topk_blocks")
    indexer = Indexer(heads=c.integer("index_n_heads"), dim=c.integer("index_head_dim"), top=top)
    block = with_blocks(full, hidden, indexer)
    shared = whole(c, "shared_intermediate_size", 0)
    feed = sparse(c, routed(c, width="intermediate_size"), shared=shared, bias=True)
    kinds = [FULL if i in first else m3.SPARSE for i in range(count)] if kinds is None else kinds
    mixers = [block if kind == m3.SPARSE else full for kind in kinds]
    return decoder(c, mixers, alternate(count, first, dense(c, "dense_intermediate_size"), feed))


def mimo_v2_flash(c: ConfigReader) -> Architecture:
    """MiMo-V2-Flash: few layers in full, the rest over a short window with sinks and more key-value heads."""
    c.values = mimo.todays(c)
    count, hidden, heads = layer_count(c), c.integer("hidden_size"), c.integer("num_attention_heads")
    kinds, bias = listed(c, "layer_types", count, WINDOWED) or c.require("layer_types"), flag(c, "attention_bias")
    size, v = c.integer("head_dim"), c.integer("v_head_dim")
    full = gqa(hidden, heads, c.integer("num_key_value_heads"), size, v_dim=v, qkv_bias=bias)
    swa_kv, window = c.integer("swa_num_key_value_heads"), c.integer("sliding_window")
    swa = gqa(hidden, heads, swa_kv, size, v_dim=v, qkv_bias=bias, window=window, sinks=True)
    feed = sparse(c, routed(c), bias=True)
    mixers = [swa if kind == WINDOWED[0] else full for kind in kinds]
    return decoder(c, mixers, alternate(count, dense_layers(c, default=1), dense(c), feed))


def step3p5(c: ConfigReader) -> Architecture:
    """Step-3.5 and 3.7 Flash: one gate a head; layers over a window have more heads."""
    c.values = step.todays(c)
    count, hidden, heads = layer_count(c), c.integer("hidden_size"), c.integer("num_attention_heads")
    kinds = listed(c, "layer_types", count, WINDOWED) or c.require("layer_types")
    kv = c.integer("num_key_value_heads")
    full = gqa(hidden, heads, kv, head_dim(c), qk_norm="head", head_gate=True)
    swa_heads = whole(c, "num_sliding_attention_heads", heads)
    swa = gqa(hidden, swa_heads, kv, head_dim(c), qk_norm="head", head_gate=True, window=c.integer("sliding_window"))
    feed = sparse(c, routed(c), shared=c.integer("share_expert_dim"), bias=True)
    mixers = [swa if kind == WINDOWED[0] else full for kind in kinds]
    return decoder(c, mixers, alternate(count, dense_layers(c, default=3), dense(c), feed))


def laguna(c: ConfigReader) -> Architecture:
    count, hidden = layer_count(c), c.integer("hidden_size")
    kinds = listed(c, "layer_types", count, WINDOWED) or ["full_attention"] * count
    heads = listed(c, "num_attention_heads_per_layer", count) or [c.integer("num_attention_heads")] * count
    window, bias, of_values = c.get("sliding_window"), flag(c, "attention_bias"), c.get("gating") == "per-element"
    mixers = [
        gqa(
            hidden, int(heads[i]), kv_heads(c), head_dim(c), qkv_bias=bias, output_bias=bias, qk_norm="head",
            output_gate=of_values, head_gate=not of_values, window=window if kind == WINDOWED[0] else None,
        )
        for i, kind in enumerate(kinds)
    ]  # fmt: skip
    feed = sparse(c, routed(c), shared=c.integer("shared_expert_intermediate_size"), bias=True)
    return decoder(c, mixers, alternate(count, dense_layers(c, default=1), dense(c), feed))


def gemma4(c: ConfigReader) -> Architecture:
    """Gemma-4 with experts: a dense part beside them; full layers have wider heads, their keys serve as values."""
    count, hidden, heads = layer_count(c), c.integer("hidden_size"), c.integer("num_attention_heads")
    kinds = listed(c, "layer_types", count, WINDOWED) or [WINDOWED[0 if (i + 1) % 6 else 1] for i in range(count)]
    swa = gqa(hidden, heads, kv_heads(c), head_dim(c), qk_norm="head", window=c.integer("sliding_window"))
    full = _gemma4_full(c, [i for i, kind in enumerate(kinds) if kind == WINDOWED[1]])
    experts = routed(c, count=("num_experts",), top_k=("top_k_experts",))
    beside = mlp("dense", hidden, c.integer("intermediate_size"))
    scales = vector(hidden + experts.count, "router")
    feed = sparse(c, experts)
    feed = Feed(parts=(*feed.parts, *beside, scales), experts=experts)
    if whole(c, "hidden_size_per_layer_input", 0):
        raise c.bad(
            "hidden_size_per_layer_input", c.get("hidden_size_per_layer_input"), "0 (no model with experts has it)"
        )
    mixers = [swa if kind == WINDOWED[0] else full for kind in kinds]
    return decoder(c, mixers, [feed] * count, layer_extra=(vector(7 * hidden + 1),), tied=True)


def _gemma4_full(c: ConfigReader, layers: list[int]) -> Mixer:
    """The layers that attend to everything; their sizes have keys of their own, or an entry for each layer."""
    each = c.get("per_layer_config") or {}
    own: dict[str, Any] = next((values for key, values in each.items() if int(key) in layers), {})
    size = own["head_dim"] if "head_dim" in own else c.integer("global_head_dim")
    count = own.get("num_key_value_heads") or whole(c, "num_global_key_value_heads", kv_heads(c))
    shares = own.get("attention_k_eq_v", flag(c, "attention_k_eq_v"))
    hidden, heads = c.integer("hidden_size"), c.integer("num_attention_heads")
    return gqa(hidden, heads, count, size, qk_norm="head", own_values=not shares)


def llama4(c: ConfigReader) -> Architecture:
    """Llama-4: most layers attend within chunks; one routed expert and one shared."""
    count, hidden = layer_count(c), c.integer("hidden_size")
    chunk, kinds = c.integer("attention_chunk_size"), ("chunked_attention", "full_attention")
    turning = listed(c, "no_rope_layers", count) if c.get("no_rope_layers") else None
    turning = turning or [int((i + 1) % whole(c, "no_rope_layer_interval", 4) != 0) for i in range(count)]
    types = listed(c, "layer_types", count, kinds) or [kinds[0 if turns else 1] for turns in turning]
    args, bias = (hidden, c.integer("num_attention_heads"), kv_heads(c), head_dim(c)), flag(c, "attention_bias")
    chunked, full = (gqa(*args, qkv_bias=bias, output_bias=bias, window=size, in_chunks=True) for size in (chunk, None))
    step = whole(c, "interleave_moe_layer_step", 1)
    moe = c.get("moe_layers") or [i for i in range(count) if (i + 1) % step == 0]
    feed = sparse(c, routed(c, width="intermediate_size"), shared=c.integer("intermediate_size"))
    mixers = [chunked if kind == kinds[0] else full for kind in types]
    dense_at = set(range(count)) - {int(i) for i in moe}
    return decoder(c, mixers, alternate(count, dense_at, dense(c, "intermediate_size_mlp"), feed))


def ernie4_5_moe(c: ConfigReader) -> Architecture:
    bias = flag(c, "use_bias")
    count = layer_count(c)
    experts = routed(c, count=("moe_num_experts",), top_k=("moe_k",))
    feed = sparse(c, experts, shared=whole(c, "moe_num_shared_experts", 0) * experts.width, bias=True)
    start, step = whole(c, "moe_layer_start_index", 0), whole(c, "moe_layer_interval", 1)
    end = c.get("moe_layer_end_index")
    last = count - 1 if end is None or end == -1 else int(end)
    moe = {i for i in range(count) if (i + 1) % step == 0 and start <= i <= last}
    return decoder(
        c,
        _plain(c, qkv_bias=bias, output_bias=bias),
        alternate(count, set(range(count)) - moe, dense(c), feed),
        tied=True,
    )


def hunyuan_v1_moe(c: ConfigReader) -> Architecture:
    """Hunyuan-A13B; `moe_topk` and the shared count may be lists with one entry a layer."""
    for name in ("moe_topk", "num_shared_expert", "moe_intermediate_size"):
        values = c.get(name)
        if isinstance(values, list):
            if len(set(values)) != 1:
                raise c.bad(name, values, "the same in every layer")
            c.values = {**c.values, name: values[0]}
    if c.get("moe_intermediate_size") is None:
        c.values = {**c.values, "moe_intermediate_size": c.integer("intermediate_size")}
    experts = routed(c, count=("num_experts",), top_k=("moe_topk",))
    shared = whole(c, "num_shared_expert", 1) * c.integer("intermediate_size")
    bias = flag(c, "attention_bias")
    feed = sparse(c, experts, shared=shared)
    mixers = _plain(c, qkv_bias=bias, output_bias=bias, qk_norm="head" if flag(c, "use_qk_norm", True) else "none")
    return decoder(c, mixers, [feed] * layer_count(c))


def phimoe(c: ConfigReader) -> Architecture:
    """Phi-3.5-MoE: LayerNorms with bias, biased attention, biased head."""
    hidden, bias = c.integer("hidden_size"), flag(c, "attention_bias")
    feed = sparse(c, routed(c, width="intermediate_size"))
    head_bias = (vector(c.integer("vocab_size")),) if flag(c, "lm_head_bias") else ()
    mixers = _plain(c, qkv_bias=bias, output_bias=bias)
    return decoder(
        c, mixers, [feed] * layer_count(c), layer_extra=(vector(hidden),) * 4, extra=(vector(hidden), *head_bias)
    )


def granitemoeshared(c: ConfigReader) -> Architecture:
    bias = flag(c, "attention_bias")
    shared = whole(c, "shared_intermediate_size", 0)
    feed = sparse(c, routed(c, width="intermediate_size"), shared=shared)
    return decoder(c, _plain(c, qkv_bias=bias, output_bias=bias), [feed] * layer_count(c))
