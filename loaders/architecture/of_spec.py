"""The architecture, for sizes and FLOPs, of a model that the engine runs: of its spec, or of the sizes in its config.

A spec has everything that a run computes with; a plan needs the sizes alone, and a config whose other settings nobody
can run has these too. That both say the same is held by a test.
"""

from __future__ import annotations

from dataclasses import replace

from ..families.config_reader import ConfigReader
from ..families.family import Family, Key
from ..spec import (
    AttentionSpec,
    BankedStreamsSpec,
    CompressedSpec,
    ConvSpec,
    DenseSpec,
    GatedStreamsSpec,
    LatentSpec,
    LayerSpec,
    MixerSpec,
    ModelSpec,
    MoeSpec,
    SpaceSpec,
    StreamsSpec,
)
from .architecture import Architecture, Experts, Group, Layer, Mixer, Part, mlp, router, vector
from .common import (
    alternate,
    decoder,
    dense,
    dense_by_step,
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
    routed,
    tables_of_experts,
    weighted_end,
)
from .common import sparse as sparse_feed
from .mixers import Indexer, compressed, gated_deltanet, gqa, kimi_delta, mamba2, mla, short_conv, with_blocks


def of_spec(spec: ModelSpec) -> Architecture:
    """The architecture of a model that the engine runs."""
    kinds = {layer: _layer(spec, layer) for layer in set(spec.layers)}
    biases = (vector(spec.hidden),) * spec.layernorms + (vector(spec.vocab),) * spec.head_bias
    biases += (vector(spec.learned_turns),) if spec.learned_turns else ()
    if isinstance(spec.streams, GatedStreamsSpec):
        biases += last_connection(spec.hidden, spec.streams.count, spec.streams.rank)
    if isinstance(spec.streams, BankedStreamsSpec):
        biases += fitting(spec.hidden, spec.streams.joined)
    elif isinstance(spec.streams, StreamsSpec) and spec.streams.weighted_end:
        biases += weighted_end(spec.hidden, spec.streams.count)
    tables = sum(isinstance(one.ffn, MoeSpec) and one.ffn.by_token for one in spec.layers)
    return Architecture(
        family=spec.family,
        vocab=spec.vocab,
        hidden=spec.hidden,
        context=spec.context,
        layers=tuple(kinds[layer] for layer in spec.layers),
        tied_head=spec.tied_head,
        extra=biases,
        lookup=(
            *(Part("tables", one.grams.rows, one.grams.row) for one in spec.layers if one.grams),
            *tables_of_experts(tables, spec.vocab, spec.moe.top_k if tables else 0),
        ),
    )


def _layer(spec: ModelSpec, layer: LayerSpec) -> Layer:
    hidden, ffn = spec.hidden, layer.ffn
    mixer = None if layer.mixer is None else _mixer(hidden, layer.mixer)
    norms = (vector(hidden),) * ((mixer is not None) + (ffn is not None)) * (2 if spec.layernorms else 1)
    norms = _of_streams(spec, layer, norms)
    if layer.grams and mixer:
        mixer = replace(mixer, state=mixer.state + spec.grams_state(layer))
    own = () if mixer is None else mixer.parts
    if ffn is None:
        return Layer(mixer=mixer, parts=(*own, *norms), experts=None)
    matrices = 3 if ffn.activation.gated else 2
    if isinstance(ffn, DenseSpec):
        return Layer(mixer=mixer, parts=(*own, *mlp("dense", hidden, ffn.width, matrices), *norms), experts=None)
    beside: Group = "dense" if layer.own_norms else "shared"
    shared = mlp(beside, hidden, ffn.shared_width, matrices) if ffn.shared_width else ()
    if layer.own_norms:
        norms = (vector(hidden + ffn.experts, "router"), vector(7 * hidden + 1))
    gate = (Part("router", 1, hidden, plain=True),) if ffn.shared_gate else ()
    routing = router(hidden, ffn.experts, ffn.choice_bias)
    routing += (vector(ffn.experts, "router"),) if ffn.router_bias else ()
    bias = 2 * ffn.width + hidden if ffn.expert_bias else 0
    around = latent_projections(hidden, ffn.latent, ffn.latent_norm) if ffn.latent else ()
    within = ffn.latent or hidden
    experts = Experts(count=ffn.experts, top_k=ffn.top_k, hidden=within, width=ffn.width, matrices=matrices, bias=bias)
    return Layer(mixer=mixer, parts=(*own, *routing, *shared, *gate, *around, *norms), experts=experts)


def _of_streams(spec: ModelSpec, layer: LayerSpec, norms: tuple[Part, ...]) -> tuple[Part, ...]:
    """The norms of a layer, and what several residual streams have besides, or in their place."""
    if spec.streams is None:
        return norms
    if isinstance(spec.streams, StreamsSpec):
        return norms + hyper_connections(spec.hidden, spec.streams.count) * 2
    if isinstance(spec.streams, BankedStreamsSpec):
        return norms + fitting(spec.hidden, spec.streams.joined) * 2
    found = gated_connection(spec.hidden, spec.streams.count, spec.streams.rank) * 2
    if layer.grams is None:
        return found
    return found + grams_parts(spec.hidden, spec.streams.count, layer.grams.width, layer.grams.taps)


def _mixer(hidden: int, it: MixerSpec) -> Mixer:
    if isinstance(it, AttentionSpec):
        whole = gqa(
            hidden, it.heads, it.kv_heads, it.head_dim, v_dim=it.v_dim, qkv_bias=it.qkv_bias,
            output_bias=it.output_bias, qk_norm="none" if it.qk_norm == "plain" else it.qk_norm,
            window=it.window or it.chunk, in_chunks=it.chunk is not None,
            output_gate=it.gate == "of values", head_gate=it.gate == "of heads",
            sinks=it.sinks, own_values=it.own_values,
        )  # fmt: skip
        if it.blocks is None:
            return whole
        return with_blocks(whole, hidden, Indexer(heads=it.blocks.heads, dim=it.blocks.dim, top=it.blocks.keys))
    if isinstance(it, LatentSpec):
        rank = it.q_rank or None
        sizes = hidden, it.heads, rank, it.kv_rank, it.nope, it.rope_dim, it.v_dim
        if it.indexer is None:
            return mla(*sizes, bias=it.bias, gate_rows=it.gate_rows)
        own = it.indexer
        chooses = Indexer(heads=own.heads, dim=own.dim, top=own.top, from_hidden=own.from_hidden, pool=own.pool)
        return mla(*sizes, bias=it.bias, indexer=chooses, own_indexer=own.own, by_logs=it.by_logs)
    if isinstance(it, CompressedSpec):
        some = None if it.indexer is None else Indexer(heads=it.indexer.heads, dim=it.indexer.dim, top=it.indexer.top)
        low = it.q_rank, it.groups, it.o_rank
        return compressed(hidden, it.heads, it.head_dim, *low, rate=it.rate, window=it.window, indexer=some)
    if isinstance(it, ConvSpec):
        return short_conv(hidden, it.taps, it.bias)
    if isinstance(it, SpaceSpec):
        return mamba2(hidden, it.heads, it.v_dim, it.groups, it.k_dim, it.taps, it.conv_bias, it.bias)
    if it.by_key:
        return kimi_delta(
            hidden, it.v_heads, it.v_dim, it.taps, low_rank=it.decay_rank > 0, full_gate=it.gate_rank == 0
        )
    return gated_deltanet(hidden, it.k_heads, it.v_heads, it.k_dim, it.v_dim, it.taps)


def of_family(family: Family, c: ConfigReader) -> Architecture:
    """The architecture that a config of `family` says; reads sizes, and the flags that decide which tensors there are.
    Raises ConfigError for sizes that are missing or impossible."""

    def has(value: bool | Key) -> bool:
        return flag(c, value.name, bool(value.default)) if isinstance(value, Key) else value

    count = layer_count(c)
    mixer = gqa(
        c.integer("hidden_size"), c.integer("num_attention_heads"), kv_heads(c), head_dim(c),
        qkv_bias=has(family.qkv_bias), output_bias=has(family.output_bias), qk_norm=family.qk_norm,
    )  # fmt: skip
    feed = sparse_feed(
        c,
        routed(c, count=family.experts, width=family.expert_width),
        shared=c.integer(family.shared_width) if family.shared_width else 0,
        shared_gate=family.shared_gate,
    )
    dense_at = dense_by_step(c) if family.dense_width else set()
    between = dense(c, family.dense_width) if family.dense_width and dense_at else feed
    c.seen.update(filter(None, (family.dense_width,)))
    return decoder(c, [mixer] * count, alternate(count, dense_at, between, feed), tied=has(family.tied_head))
