"""Families in which most layers keep a fixed state instead of a growing cache: delta rules, Mamba, convolutions."""

from __future__ import annotations

from dataclasses import replace

from ..families import FAMILIES
from ..families import glm5_next as glm5
from ..families import qwen4_exp as qwen4
from ..families.config_reader import ConfigReader
from ..grams import GramsSpec
from .architecture import Architecture, Layer, Mixer, Part, vector
from .common import (
    Feed,
    alternate,
    decoder,
    dense,
    dense_by_step,
    dense_layers,
    fitting,
    flag,
    gated_connection,
    grams_parts,
    head_dim,
    hyper_connections,
    kv_heads,
    last_connection,
    latent_projections,
    layer_count,
    linear_layers,
    routed,
    sparse,
    whole,
)
from .latent import latent, latent_feeds, read_indexer
from .mixers import Indexer, gated_deltanet, gqa, kimi_delta, mamba2, short_conv, with_blocks

LINEAR, FULL = ("linear_attention",), ("full_attention", "indexed_attention")


def qwen_next(c: ConfigReader) -> Architecture:
    """Qwen3-Next, Qwen3.5, 3.6, 3.8: three layers of gated delta rule to one of gated attention."""
    count, hidden = layer_count(c), c.integer("hidden_size")
    is_linear = linear_layers(c, LINEAR, FULL, "full_attention_interval")
    full = gqa(
        hidden, c.integer("num_attention_heads"), kv_heads(c), head_dim(c), qk_norm="head", output_gate=True,
        qkv_bias=flag(c, "attention_bias"), output_bias=flag(c, "attention_bias"),
    )  # fmt: skip
    mixers = [_deltanet(c) if linear else full for linear in is_linear]
    feed = sparse(c, routed(c), shared=c.integer("shared_expert_intermediate_size"), shared_gate=True)
    dense_at = dense_by_step(c)
    return decoder(c, mixers, alternate(count, dense_at, dense(c) if dense_at else feed, feed))


def _deltanet(c: ConfigReader) -> Mixer:
    return gated_deltanet(
        c.integer("hidden_size"),
        c.integer("linear_num_key_heads"),
        c.integer("linear_num_value_heads"),
        c.integer("linear_key_head_dim"),
        c.integer("linear_value_head_dim"),
        c.integer("linear_conv_kernel_dim"),
    )


def kimi_linear(c: ConfigReader) -> Architecture:
    """Kimi-Linear: Kimi delta attention, and latent attention without rotary embedding."""
    count = layer_count(c)
    lin = c.get("linear_attn_config") or {}
    if lin:
        full_at = {int(i) - 1 for i in lin["full_attn_layers"]}
        is_linear = [i not in full_at for i in range(count)]
        heads, size, conv = int(lin["num_heads"]), int(lin["head_dim"]), int(lin.get("short_conv_kernel_size", 4))
    else:
        is_linear = linear_layers(c, LINEAR, FULL, None)
        heads, size = c.integer("linear_num_heads"), c.integer("linear_head_dim")
        conv = c.integer("linear_conv_kernel_dim")
    delta = kimi_delta(c.integer("hidden_size"), heads, size, conv)
    mixers = [delta if linear else latent(c) for linear in is_linear]
    return decoder(c, mixers, latent_feeds(c, default=1))


def bailing_hybrid(c: ConfigReader) -> Architecture:
    """Ling-3.0: Kimi delta attention with full-rank decay and gate, and latent attention with one gate a head."""
    delta = kimi_delta(
        c.integer("hidden_size"), c.integer("linear_num_heads", "num_attention_heads"),
        c.integer("linear_head_dim", "head_dim"), c.integer("linear_conv_kernel_dim", "short_conv_kernel_size"),
        low_rank=False, full_gate=True,
    )  # fmt: skip
    full = latent(c, gate_rows=c.integer("num_attention_heads"))
    is_linear = linear_layers(c, LINEAR, FULL, "layer_group_size")
    return decoder(c, [delta if linear else full for linear in is_linear], latent_feeds(c))


def glm5_next(c: ConfigReader) -> Architecture:
    """GLM-5.3-Flash: Kimi delta attention, sparse latent attention over runs of keys, four residual streams."""
    c.values = glm5.todays(c)
    hidden, indexer, pool = c.integer("hidden_size"), read_indexer(c), c.integer("index_kpool")
    delta = kimi_delta(
        hidden, c.integer("linear_num_heads"), c.integer("linear_head_dim"), c.integer("linear_conv_kernel_dim")
    )
    full = latent(c, replace(indexer, top=indexer.top + pool - 1, pool=pool))
    is_linear = linear_layers(c, LINEAR, FULL, None)
    streams = hyper_connections(hidden, whole(c, "hc_mult", 4))
    mixers = [delta if linear else full for linear in is_linear]
    norms = (vector(hidden), vector(hidden))
    return decoder(c, mixers, latent_feeds(c), layer_extra=(*norms, *streams, *streams))


def granitemoehybrid(c: ConfigReader) -> Architecture:
    """Granite-4.0-H: Mamba 2 with a few layers of attention, a shared MLP beside the experts."""
    hidden = c.integer("hidden_size")
    names = ("mamba", "linear_attention")
    is_mamba = linear_layers(c, names, ("attention", "full_attention"), None)
    mamba = mamba2(
        hidden, c.integer("mamba_n_heads"), c.integer("mamba_d_head"), c.integer("mamba_n_groups"),
        c.integer("mamba_d_state"), c.integer("mamba_d_conv"), flag(c, "mamba_conv_bias", True),
        flag(c, "mamba_proj_bias"),
    )  # fmt: skip
    biased = flag(c, "attention_bias")
    attention = gqa(
        hidden, c.integer("num_attention_heads"), kv_heads(c), head_dim(c), qkv_bias=biased, output_bias=biased
    )
    shared = c.integer("shared_intermediate_size")
    feed = sparse(c, routed(c, width="intermediate_size"), shared=shared)
    mixers = [mamba if recurrent else attention for recurrent in is_mamba]
    return decoder(c, mixers, [feed] * layer_count(c), tied=True)


def lfm2_moe(c: ConfigReader) -> Architecture:
    """LFM2-MoE: gated short convolutions with some layers of attention."""
    count, hidden = layer_count(c), c.integer("hidden_size")
    is_conv = linear_layers(c, ("conv", "linear_attention"), FULL, None)
    conv = short_conv(hidden, c.integer("conv_L_cache"), flag(c, "conv_bias"))
    attention = gqa(hidden, c.integer("num_attention_heads"), kv_heads(c), head_dim(c), qk_norm="head")
    feed = sparse(c, routed(c), bias=flag(c, "use_expert_bias", True))
    first = set(range(c.integer("num_dense_layers")))
    mixers = [conv if recurrent else attention for recurrent in is_conv]
    return decoder(c, mixers, alternate(count, first, dense(c), feed), tied=True)


PATTERN = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}
SPELLINGS = {"linear_attention": "mamba", "full_attention": "attention"}


def nemotron_h(c: ConfigReader) -> Architecture:
    """Nemotron-3: every block is one thing, Mamba 2, attention or experts (two matrices each, in the largest models
    around a narrower latent)."""
    blocks = _blocks(c)
    hidden, latent_size = c.integer("hidden_size"), whole(c, "moe_latent_size", 0)
    matrices = 2
    experts = routed(c, matrices=matrices, hidden=latent_size or None)
    shared = whole(c, "n_shared_experts", 0) * whole(c, "moe_shared_expert_intermediate_size", 0)
    moe = sparse(c, experts, shared=shared, bias=True, shared_matrices=matrices)
    around = latent_projections(hidden, latent_size) if latent_size else ()
    mamba = mamba2(
        hidden, c.integer("mamba_num_heads"), c.integer("mamba_head_dim"), c.integer("n_groups"),
        c.integer("ssm_state_size"), c.integer("conv_kernel"), flag(c, "use_conv_bias", True),
        flag(c, "use_bias", flag(c, "mamba_proj_bias")),
    )  # fmt: skip
    attention = gqa(hidden, c.integer("num_attention_heads"), kv_heads(c), head_dim(c))
    norm = vector(hidden)
    kinds = {
        "mamba": Layer(mixer=mamba, parts=(*mamba.parts, norm), experts=None),
        "attention": Layer(mixer=attention, parts=(*attention.parts, norm), experts=None),
        "moe": Layer(mixer=None, parts=(*moe.parts, *around, norm), experts=experts),
    }
    if "mlp" in blocks:
        kinds["mlp"] = Layer(mixer=None, parts=(*dense(c, matrices=matrices).parts, norm), experts=None)
    none = decoder(c, [], [])
    return replace(none, layers=tuple(kinds[block] for block in blocks))


def _blocks(c: ConfigReader) -> list[str]:
    """The kind of every block, from the pattern of letters or the list of names."""
    pattern, names = c.get("hybrid_override_pattern"), c.get("layers_block_type")
    blocks = [PATTERN.get(ch, ch) for ch in pattern] if names is None and pattern else names
    if not isinstance(blocks, list) or not blocks:
        raise c.bad("layers_block_type", blocks, "a list of block kinds, or hybrid_override_pattern")
    found = [SPELLINGS.get(str(block), str(block)) for block in blocks]
    if unknown := sorted(set(found) - set(PATTERN.values())):
        raise c.bad("layers_block_type", unknown[0], ", ".join(PATTERN.values()))
    c.get("num_hidden_layers")
    return found


def kimi_k3(c: ConfigReader) -> Architecture:
    """Kimi-K3: as Kimi-Linear with full-rank output gates, experts that work on a narrower latent, and what earlier
    states of the residual stream are weighed by."""
    count, hidden, lin = layer_count(c), c.integer("hidden_size"), c.get("linear_attn_config") or {}
    full_at = {int(i) - 1 for i in lin.get("full_attn_layers", ())}
    heads, size = int(lin["num_heads"]), int(lin["head_dim"])
    delta = kimi_delta(hidden, heads, size, int(lin["short_conv_kernel_size"]), full_gate=True)
    full = latent(c, gate_rows=c.integer("num_attention_heads") * c.integer("v_head_dim"))
    size = whole(c, "routed_expert_hidden_size", 0)
    experts = routed(c, hidden=size or None)
    feed = sparse(c, experts, shared=c.integer("num_shared_experts") * experts.width, bias=True)
    feed = Feed(parts=feed.parts + (latent_projections(hidden, size, norm=True) if size else ()), experts=experts)
    mixers = [full if i in full_at else delta for i in range(count)]
    c.get("attn_res_block_size")
    norms = (vector(hidden), vector(hidden), *fitting(hidden) * 2)
    feeds = alternate(count, dense_layers(c, default=1), dense(c), feed)
    return decoder(c, mixers, feeds, layer_extra=norms, extra=fitting(hidden))


def qwen4_exp(c: ConfigReader) -> Architecture:
    """Qwen3.8-Flash-Next: as Qwen3.5 with gated residual streams, an indexer in the full layers, and tables of runs of
    tokens of which each token reads a few rows."""
    c.values = qwen4.todays(c)
    base, hidden, streams, rank = qwen_next(c), c.integer("hidden_size"), c.integer("hc_count"), c.integer("hc_lowrank")
    tables = qwen4.grams(FAMILIES["qwen4_exp"], c, len(base.layers))
    connection = gated_connection(hidden, streams, rank)
    layers = [
        _with_streams(layer, hidden, streams, (*connection, *connection), grams, _chooses(c))
        for layer, grams in zip(base.layers, tables, strict=True)
    ]
    return replace(
        base, layers=tuple(layers), extra=last_connection(hidden, streams, rank),
        lookup=tuple(Part("tables", one.rows, one.row) for one in tables if one),
    )  # fmt: skip


def _chooses(c: ConfigReader) -> Indexer | None:
    """The indexer of layers of attention, if the config has one."""
    if c.get("indexer_n_heads") is None:
        return None
    top = c.integer("indexer_budget") + c.integer("indexer_compress_ratio") - 1
    return Indexer(heads=c.integer("indexer_n_heads"), dim=c.integer("indexer_head_dim"), top=top)


def _with_streams(
    layer: Layer, hidden: int, streams: int, norms: tuple[Part, ...], grams: GramsSpec | None, chooses: Indexer | None
) -> Layer:
    """A layer of one stream with gated ones in place of its norms."""
    assert layer.mixer is not None, "a layer without a mixer"
    rest, mixer = layer.parts[len(layer.mixer.parts) : -2], layer.mixer
    if not mixer.state and chooses is not None:
        mixer = with_blocks(mixer, hidden, chooses)
    more: tuple[Part, ...] = ()
    if grams is not None:
        mixer = replace(mixer, state=mixer.state + streams * hidden * grams.past + grams.size - 1)
        more = grams_parts(hidden, streams, grams.width, grams.taps)
    return replace(layer, mixer=mixer, parts=(*mixer.parts, *rest, *norms, *more))
