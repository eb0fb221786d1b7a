"""Qwen3.8-Flash-Next, the text model: as Qwen3.5, with gated residual streams, an indexer that chooses runs of keys,
and tables of runs of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...errors import ConfigError
from ..choosers import RunIndexerSpec
from ..grams import GramsSpec, StoredHashes
from ..spec import AttentionSpec, DeltaSpec, MixerSpec
from .config_reader import ConfigReader
from .family import Family, Key
from .indexers import INDEXED
from .qwen3_next import QWEN3_5_MOE
from .window import FULL

HASHES = "ngram_hashes"  # what a GGUF file says of them


def todays(config: ConfigReader) -> dict[str, Any]:
    """Layers of attention are called what other families call them."""
    kinds = config.values.get("layer_types")
    if not isinstance(kinds, list):
        return config.values
    return config.values | {"layer_types": [FULL if kind == INDEXED else kind for kind in kinds]}


def with_runs(config: ConfigReader, mixers: Sequence[MixerSpec]) -> list[MixerSpec]:
    """The layers, those of attention with an indexer."""
    try:
        config.require("indexer_budget")
    except ConfigError as error:  # its sizes were not published: a plan goes without
        config.refuse(error)
        return list(mixers)
    budget, pool = config.integer("indexer_budget"), config.integer("indexer_compress_ratio")
    heads, dim = config.integer("indexer_n_heads"), config.integer("indexer_head_dim")
    config.only("indexer_kv_heads", (1,))
    if budget % pool or pool < 2:
        raise config.bad("indexer_compress_ratio", pool, f"a divisor of indexer_budget = {budget} above 1")
    sigmoid, found = _gate_is_sigmoid(config), list[MixerSpec]()
    for one in mixers:
        if isinstance(one, DeltaSpec):
            one = replace(one, sigmoid=sigmoid)
        if isinstance(one, AttentionSpec):
            if dim < one.rope.rotary_dim:
                wanted = f"at least the {one.rope.rotary_dim} dims that are rotated"
                config.refuse(config.bad("indexer_head_dim", dim, wanted))
            one = replace(one, blocks=RunIndexerSpec(heads=heads, dim=dim, top=budget + pool - 1, pool=pool))
        found.append(one)
    return found


def _gate_is_sigmoid(config: ConfigReader) -> bool:
    """What gates of delta rules are: the activation of everything else, unless the config says it."""
    kind = config.get("output_gate_type")
    if kind not in (None, "silu", "swish", "sigmoid"):
        raise config.bad("output_gate_type", kind, "silu or sigmoid")
    return bool(kind == "sigmoid")


def grams(family: Family, config: ConfigReader, count: int) -> list[GramsSpec | None]:
    """Of each layer its table of runs of tokens."""
    if not family.has_grams:
        return [None] * count
    layers = config.get("ple_layer_ids") or []
    if not isinstance(layers, list) or not all(isinstance(i, int) and 0 < i <= count for i in layers):
        raise config.bad("ple_layer_ids", layers, f"a list of numbers from 1 to {count}")
    numbers = sorted(set(layers))
    return [_read(config, numbers.index(i + 1)) if i + 1 in numbers else None for i in range(count)]


def _read(config: ConfigReader, number: int) -> GramsSpec:
    size, heads, width = (
        config.integer("ngram_size"),
        config.integer("heads_per_ngram"),
        config.integer("ple_embed_dim"),
    )
    if size < 2 or width % ((size - 1) * heads):
        raise config.bad("ple_embed_dim", width, f"a multiple of the heads of runs of 2 to ngram_size = {size} tokens")
    if (stored := config.get(HASHES)) is not None:
        return _stored(config, stored, size, heads, width)
    end = config.get("eos_token_id")
    end = end[0] if isinstance(end, list) and end else end
    if not isinstance(end, int) or isinstance(end, bool):
        config.refuse(config.bad("eos_token_id", end, "a token, behind which runs of tokens begin anew"))
        end = 0
    config.get("split_ngram_parts")
    multiple = config.get("make_ngram_vocab_size_divisible_by")
    return GramsSpec(
        size=size, heads=heads, width=width, number=number, end=end, vocab=config.integer("vocab_size"),
        base=config.integer("ngram_vocab_size_base"), taps=config.integer("ple_conv_kernel_size"),
        multiple=128 if multiple is None else config.integer("make_ngram_vocab_size_divisible_by"),
        seed=1234 if config.get("seed") is None else config.integer("seed"),
    )  # fmt: skip


def _stored(config: ConfigReader, stored: dict[str, Any], size: int, heads: int, width: int) -> GramsSpec:
    """Of a file that says what tokens are multiplied by, and how many rows each head has."""
    hashes = StoredHashes(multipliers=tuple(stored["multipliers"]), primes=tuple(stored["primes"]), rows=stored["rows"])
    return GramsSpec(
        size=size, heads=heads, width=width, number=0, end=stored["end"], vocab=config.integer("vocab_size"), base=0,
        taps=config.integer("ple_conv_kernel_size"), multiple=1, seed=0, stored=hashes,
    )  # fmt: skip


QWEN4_EXP = replace(
    QWEN3_5_MOE,
    model_type="qwen4_exp",
    architecture="Qwen4ExpForConditionalGeneration",
    mtp_gap="they have several residual streams",
    renormalise=Key("norm_topk_prob", True),
    has_grams=True,
    implied={name: values for name, values in QWEN3_5_MOE.implied.items() if name != "output_gate_type"},
    unused=("number_of_conv_states",),  # of a library's cache
    gated_streams=(Key("hc_count"), Key("hc_lowrank")),
    spelling=todays,
    tensors=replace(
        QWEN3_5_MOE.tensors,
        attn_norm="attn_hyper_connection.hc_norm.weight",
        mlp_norm="mlp_hyper_connection.hc_norm.weight",
        final_norm="model.hyper_connection_mixer.hc_norm.weight",
        mixings=("attn_hyper_connection.{}.weight", "mlp_hyper_connection.{}.weight"),
        block_qk="self_attn.indexer.index_qk_proj.weight",
        block_q_norm="self_attn.indexer.q_layernorm.weight",
        block_k_norm="self_attn.indexer.k_layernorm.weight",
    ),
)
