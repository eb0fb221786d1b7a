"""Families with latent attention in every layer: DeepSeek and its relatives, with and without an indexer."""

from __future__ import annotations

from dataclasses import replace

from ..families import deepseek_v4 as v4
from ..families.chunks import which_turn
from ..families.config_reader import ConfigReader
from ..families.indexers import FULL, kinds_of
from .architecture import Architecture, Mixer, vector
from .common import (
    Feed,
    alternate,
    decoder,
    dense,
    dense_layers,
    flag,
    hyper_connections,
    layer_count,
    routed,
    sparse,
    tables_of_experts,
    weighted_end,
    whole,
)
from .mixers import Indexer, compressed, mla

SOFTMAX = ("deepseek_v2", "mistral4", "mistral_large4")  # routers whose choice no vector biases


def latent_feeds(c: ConfigReader, default: int | None = None) -> list[Feed]:
    """Dense layers, then routed experts beside `n_shared_experts` shared ones."""
    experts = routed(c)
    shared = (whole(c, "n_shared_experts", 0) or whole(c, "num_shared_experts", 0)) * experts.width
    feed = sparse(c, experts, shared=shared, bias=str(c.get("model_type")).removesuffix("_text") not in SOFTMAX)
    first = dense_layers(c, default=default)
    return alternate(layer_count(c), first, dense(c) if first else feed, feed)


def latent(c: ConfigReader, indexer: Indexer | None = None, own_indexer: bool = True, gate_rows: int = 0) -> Mixer:
    """The attention of one layer."""
    return mla(
        c.integer("hidden_size"),
        c.integer("num_attention_heads"),
        whole(c, "q_lora_rank", 0) or None,
        c.integer("kv_lora_rank"),
        c.integer("qk_nope_head_dim"),
        whole(c, "qk_rope_head_dim", 0),
        c.integer("v_head_dim"),
        bias=flag(c, "attention_bias"),
        indexer=indexer,
        own_indexer=own_indexer,
        gate_rows=gate_rows,
    )


def read_indexer(c: ConfigReader) -> Indexer:
    return Indexer(heads=c.integer("index_n_heads"), dim=c.integer("index_head_dim"), top=c.integer("index_topk"))


def deepseek(c: ConfigReader) -> Architecture:
    """DeepSeek-V2, V3, R1, Kimi-K2, Moonlight, GLM-4.7-Flash, Mistral-4."""
    return decoder(
        c, [latent(c)] * layer_count(c), latent_feeds(c, default=0 if c.get("model_type") == "mistral4" else None)
    )


def deepseek_v32(c: ConfigReader) -> Architecture:
    return decoder(c, [latent(c, read_indexer(c))] * layer_count(c), latent_feeds(c))


def glm_moe_dsa(c: ConfigReader) -> Architecture:
    """GLM-5: layers marked "shared" reuse the choice of the last layer that has an indexer."""
    count, indexer = layer_count(c), read_indexer(c)
    mixers = [latent(c, indexer, kind == FULL) for kind in kinds_of(c, count)]
    return decoder(c, mixers, latent_feeds(c, default=3))


def mistral_large4(c: ConfigReader) -> Architecture:
    """Mistral-Large-4: an indexer, or the choice of an earlier one; every fourth layer has no rotary dimensions."""
    count, hidden, heads = layer_count(c), c.integer("hidden_size"), c.integer("num_attention_heads")
    rope, nope, v = c.integer("qk_rope_head_dim"), c.integer("qk_nope_head_dim"), c.integer("v_head_dim")
    indexer, kv = replace(read_indexer(c), from_hidden=True), c.integer("kv_lora_rank")
    bias = flag(c, "attention_bias")
    mixers = [
        mla(
            hidden, heads, None, kv, nope if turned else nope + rope, rope if turned else 0, v, bias=bias,
            indexer=indexer, own_indexer=kind == FULL, by_logs=True,
        )
        for turned, kind in zip(which_turn(c, count), kinds_of(c, count), strict=True)
    ]  # fmt: skip
    return decoder(c, mixers, latent_feeds(c, default=1), extra=(vector(rope // 2),))


def deepseek_v4(c: ConfigReader) -> Architecture:
    """DeepSeek-V4: compressed attention, four residual streams, the first layers choose experts by token id."""
    c.values = v4.todays(c)
    count, hidden = layer_count(c), c.integer("hidden_size")
    indexer = read_indexer(c)
    heads, size = c.integer("num_attention_heads"), c.integer("head_dim")
    low = (c.integer("q_lora_rank"), c.integer("o_groups"), c.integer("o_lora_rank"))
    mixers = [
        compressed(
            hidden, heads, size, *low, rate=rate, window=c.integer("sliding_window"), indexer=indexer if some else None
        )
        for rate, some in v4.rates_of(c, count)
    ]  # fmt: skip
    experts = routed(c)
    shared = whole(c, "n_shared_experts", 1) * experts.width
    by_score, by_token = (sparse(c, experts, shared=shared, bias=biased) for biased in (True, False))
    tables, streams = v4.by_token(c, count), whole(c, "hc_mult", 4)
    extra = (vector(hidden), vector(hidden), *hyper_connections(hidden, streams) * 2)
    feeds = alternate(count, {i for i, one in enumerate(tables) if one}, by_token, by_score)
    return decoder(
        c, mixers, feeds, layer_extra=extra, extra=weighted_end(hidden, streams),
        lookup=tables_of_experts(sum(tables), c.integer("vocab_size"), experts.top_k),
    )  # fmt: skip
