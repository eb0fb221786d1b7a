"""The architecture, for sizes and FLOPs, of the spec of a model.

A spec has everything that a run computes with; a plan needs the sizes alone, and a config whose other settings nobody
can run has these too (`readers.py`).
"""

from __future__ import annotations

from dataclasses import replace

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
from .architecture import Architecture, Experts, Group, Layer, Mixer, Part, matrix, mlp, router, vector
from .mixers import Indexer, compressed, gated_deltanet, gqa, kimi_delta, mamba2, mla, short_conv, with_blocks


def of_spec(spec: ModelSpec) -> Architecture:
    """The architecture of a model that the engine runs."""
    kinds = {layer: _layer(spec, layer) for layer in set(spec.layers)}
    biases = (vector(spec.hidden),) * spec.layernorms + (vector(spec.vocab),) * spec.head_bias
    biases += (vector(spec.learned_turns),) if spec.learned_turns else ()
    if isinstance(spec.streams, GatedStreamsSpec):
        biases += _last_connection(spec.hidden, spec.streams.count, spec.streams.rank)
    if isinstance(spec.streams, BankedStreamsSpec):
        biases += _fitting(spec.hidden, spec.streams.joined)
    elif isinstance(spec.streams, StreamsSpec) and spec.streams.weighted_end:
        biases += _weighted_end(spec.hidden, spec.streams.count)
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
            *_tables_of_experts(tables, spec.vocab, spec.moe.top_k if tables else 0),
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
    around = _latent_projections(hidden, ffn.latent, ffn.latent_norm) if ffn.latent else ()
    within = ffn.latent or hidden
    experts = Experts(count=ffn.experts, top_k=ffn.top_k, hidden=within, width=ffn.width, matrices=matrices, bias=bias)
    return Layer(mixer=mixer, parts=(*own, *routing, *shared, *gate, *around, *norms), experts=experts)


def _of_streams(spec: ModelSpec, layer: LayerSpec, norms: tuple[Part, ...]) -> tuple[Part, ...]:
    """The norms of a layer, and what several residual streams have besides, or in their place."""
    if spec.streams is None:
        return norms
    if isinstance(spec.streams, StreamsSpec):
        return norms + _hyper_connections(spec.hidden, spec.streams.count) * 2
    if isinstance(spec.streams, BankedStreamsSpec):
        return norms + _fitting(spec.hidden, spec.streams.joined) * 2
    found = _gated_connection(spec.hidden, spec.streams.count, spec.streams.rank) * 2
    if layer.grams is None:
        return found
    return found + _grams_parts(spec.hidden, spec.streams.count, layer.grams.width, layer.grams.taps)


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


# What layers, and the end of a decoder, have besides


def _hyper_connections(hidden: int, streams: int) -> tuple[Part, ...]:
    """mHC: the mixing of `streams` residual streams before and after one part of a layer."""
    rows = (2 + streams) * streams
    return (Part("norms", rows, streams * hidden, plain=True), vector(rows + 3))


def _weighted_end(hidden: int, streams: int) -> tuple[Part, ...]:
    """What weighs streams behind the last layer."""
    return (Part("norms", streams, streams * hidden, plain=True), vector(streams + 1))


def _tables_of_experts(layers: int, vocab: int, top_k: int) -> tuple[Part, ...]:
    """Of so many layers what says which experts a token has."""
    return (Part("tables", layers * vocab, top_k, plain=True),) if layers else ()


def _gated_connection(hidden: int, streams: int, rank: int) -> tuple[Part, ...]:
    """Gated streams before one part of a layer, their norm with them."""
    wide = streams * hidden
    low = Part("norms", rank, wide, plain=True), Part("norms", wide, rank, plain=True)
    return (vector(wide), *low, Part("norms", streams, wide, plain=True))


def _last_connection(hidden: int, streams: int, rank: int) -> tuple[Part, ...]:
    """Behind the last layer, less the norm that every model has there."""
    return (vector((streams - 1) * hidden), *_gated_connection(hidden, streams, rank)[1:3])


def _fitting(hidden: int, joined: bool = False) -> tuple[Part, ...]:
    """What states of a residual stream that is kept fit to; joined: its norm is in it."""
    return (vector(hidden if joined else 2 * hidden),)


def _latent_projections(hidden: int, latent: int, norm: bool = False) -> tuple[Part, ...]:
    """Around routed experts that work on a narrower latent."""
    return (Part("shared", latent, hidden), Part("shared", hidden, latent)) + ((vector(latent),) if norm else ())


def _grams_parts(hidden: int, streams: int, width: int, taps: int) -> tuple[Part, ...]:
    """What is made of a table's rows for runs of tokens."""
    wide = streams * hidden
    return (matrix(wide, width), matrix(hidden, width), vector(wide * (3 + taps)))
