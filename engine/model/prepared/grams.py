"""Several residual streams, what is made of runs of tokens, and what chooses keys of grouped-query attention, put
together at load."""

from __future__ import annotations

from torch import Tensor

from ....kernels.decoder_layer import BlockChoice
from ....kernels.grams.grams import Grams, Table
from ....kernels.packed import Fitting, GatedMixing, Mixing
from ....kernels.residual.banked import BankedStreams
from ....kernels.residual.gated import GatedStreams
from ....kernels.residual.streams import Streams
from ....kernels.sparse.blocks import BlockIndexer
from ....kernels.sparse.runs import RunIndexer
from ....loaders.spec import AttentionSpec, BankedStreamsSpec, ModelSpec, RunIndexerSpec, StreamsSpec
from ....loaders.weights.mixers import AttentionWeights
from ....loaders.weights.model_weights import LayerWeights
from ..kv_cache import KeysAndValues, States


def streams(spec: ModelSpec, weights: LayerWeights, layer: int) -> Streams | GatedStreams | BankedStreams | None:
    """None: there is one, and nothing of it is kept."""
    if spec.streams is None:
        return None
    if isinstance(spec.streams, BankedStreamsSpec):
        every, (of_mixer, of_ffn) = spec.streams.every, (weights.mixer_mixing, weights.ffn_mixing)
        assert isinstance(of_mixer, Fitting)
        assert isinstance(of_ffn, Fitting)
        return BankedStreams(
            mixer_D=of_mixer.whole, ffn_D=of_ffn.whole, count=spec.streams.count, kept=-(-layer // every),
            keeps=layer % every == 0, norm_eps=spec.norm_eps,
        )  # fmt: skip
    mixer, ffn = weights.mixer_mixing, weights.ffn_mixing
    if isinstance(mixer, GatedMixing) and isinstance(ffn, GatedMixing):
        return GatedStreams(mixer=mixer, ffn=ffn, count=spec.streams.count, norm_eps=spec.norm_eps)
    assert isinstance(spec.streams, StreamsSpec)
    assert isinstance(mixer, Mixing)
    assert isinstance(ffn, Mixing)
    return Streams(
        mixer=mixer, ffn=ffn, count=spec.streams.count, rounds=spec.streams.rounds, eps=spec.streams.eps,
        norm_eps=spec.norm_eps,
    )  # fmt: skip


def blocks(
    mixer: AttentionSpec, it: AttentionWeights, cache: KeysAndValues, turns: tuple[Tensor, Tensor], eps: float
) -> BlockChoice | None:
    """None: the layer sees every key."""
    if mixer.blocks is None:
        return None
    assert it.block_q is not None
    assert it.block_k is not None
    assert it.block_q_norm is not None
    assert it.block_k_norm is not None
    if isinstance(mixer.blocks, RunIndexerSpec):
        return RunIndexer(
            heads=mixer.blocks.heads, q=it.block_q, k=it.block_k, q_norm_e=it.block_q_norm, k_norm_e=it.block_k_norm,
            eps=eps, keys_P1Be=cache.index, cos_Pr=turns[0], sin_Pr=turns[1], top=mixer.blocks.top,
            n=mixer.blocks.pool,
        )  # fmt: skip
    return BlockIndexer(
        q=it.block_q, k=it.block_k, q_norm_e=it.block_q_norm, k_norm_e=it.block_k_norm, eps=eps, keys_P1Be=cache.index,
        cos_Pr=turns[0], sin_Pr=turns[1], size=mixer.blocks.size, top=mixer.blocks.top, local=mixer.blocks.local,
    )  # fmt: skip


def prepared(spec: ModelSpec, layer: int, weights: LayerWeights, cache: States | None, table: Table) -> Grams:
    """What a layer makes of runs of tokens."""
    it, own = spec.layers[layer].grams, weights.grams
    assert it is not None
    assert own is not None
    assert cache is not None
    assert cache.state is not None
    return Grams(
        table=table, key=own.key, value=own.value, key_norm_C=own.key_norm, query_norm_C=own.query_norm,
        conv_norm_C=own.conv_norm, conv_Ct=own.conv, eps=spec.norm_eps, multipliers=it.multipliers, primes=it.primes,
        end=it.end, inputs_LCw=cache.inputs, tokens_Ln=cache.state,
    )  # fmt: skip
