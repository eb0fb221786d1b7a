"""From a GGUF's metadata to the keys of a config.json of models whose attention sees chosen keys, of several residual
streams, and of tables of runs of tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ...errors import CheckpointError
from ..families.family import Family
from ..families.ffn_reader import NORMED
from ..families.indexers import FULL as FULL_INDEX
from ..families.indexers import INDEXED
from ..families.indexers import SHARED as SHARED_INDEX
from ..families.latent_and_delta import BOUND
from ..families.mixer_reader import LINEAR
from ..families.qwen4_exp import HASHES
from ..families.spec_reader import JOINED
from ..families.window import FULL
from .of_tensors import Metadata, layers_of

NO_LIMIT = 3e38  # of float32
TABLE = "per_layer_token_embd.weight"
# Archs whose delta rules have gates that are sigmoids.
SIGMOID_GATES = ("qwen4exp",)


def latent(meta: Metadata, names: Collection[str], shared: bool) -> dict[str, Any]:
    """What chooses keys of latent attention; layers without one of their own have no tensors of it."""
    own = [f"blk.{i}.indexer.attn_k.weight" in names for i in range(layers_of(meta))]
    return {
        "index_n_heads": meta.number("attention.indexer.head_count"),
        "index_head_dim": meta.number("attention.indexer.key_length"),
        "index_topk": meta.number("attention.indexer.top_k"),
    } | ({"indexer_types": [FULL_INDEX if one else SHARED_INDEX for one in own]} if shared else {})


def blocks(family: Family, meta: Metadata, names: Collection[str]) -> dict[str, Any]:
    """What chooses blocks of keys, in the layers that have tensors of it."""
    own = [f"blk.{i}.indexer.k_proj.weight" in names for i in range(layers_of(meta))]
    return {
        "layer_types": [family.block_layers if one else FULL for one in own],
        "index_n_heads": meta.number("attention.indexer.head_count"),
        "index_head_dim": meta.number("attention.indexer.key_length"),
        "index_block_size": meta.number("attention.indexer.block_size"),
        "index_topk_blocks": meta.number("attention.indexer.top_k"),
        "index_local_blocks": meta.number("attention.indexer.local_blocks"),
    }


def runs_of_latents(meta: Metadata, names: Collection[str], kinds: list[str]) -> dict[str, Any]:
    """What chooses runs of latents, and the bound of delta rules beside. kinds: of layers."""
    found = latent(meta, names, shared=False)
    if (said := meta.get("attention.indexer.types")) is not None:
        own = said if isinstance(said, list) else [said] * len(kinds)
        found["indexer_types"] = [FULL_INDEX if one else SHARED_INDEX for one in own[: len(kinds)]]
    return found | {
        "layer_types": [LINEAR if kind == LINEAR else INDEXED for kind in kinds],
        "rope_theta": None,  # nothing turns
        "linear_lower_bound": meta.get("kda.gate_lower_bound"),
        "index_kpool": meta.number("attention.indexer.kpool"),
        "index_kpool_always_select_tail": meta.get("attention.indexer.kpool_select_tail") is not False,
    }


def runs_and_grams(meta: Metadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What chooses runs of keys in layers of attention, and the table of runs of tokens of one layer."""
    rates = meta.get("attention.compress_ratios")
    found: dict[str, Any] = {
        "indexer_n_heads": meta.number("attention.indexer.head_count"),
        "indexer_kv_heads": 1,
        "indexer_head_dim": meta.number("attention.indexer.key_length"),
        "indexer_budget": meta.number("attention.indexer.top_k"),
        "indexer_compress_ratio": max(rates, default=0) if isinstance(rates, list) else rates,
        "output_gate_type": "sigmoid" if meta.arch in SIGMOID_GATES else None,
    }
    layers = meta.get("ple.layers") or []
    return found | (_grams(meta, shapes, layers) if layers else {"ple_layer_ids": []})


def _grams(meta: Metadata, shapes: Mapping[str, tuple[int, ...]], layers: list[int]) -> dict[str, Any]:
    """Of the one layer that files have a table for, with the hashes that they say."""
    if len(layers) != 1 or TABLE not in shapes:
        raise CheckpointError(f"it has runs of tokens in layers {layers}, and one '{TABLE}': one layer is supported")
    size, heads = meta.number("ple.ngram_size"), meta.number("ple.heads_per_ngram")
    multipliers, offsets, primes = (
        meta.get(f"ple.{name}") or [] for name in ("layer_multipliers", "head_offsets", "head_vocab_sizes")
    )
    rows, row = shapes[TABLE]
    count = max(size - 1, 0) * heads
    if len(multipliers) < size or min(len(offsets), len(primes)) < count or min(primes[:count], default=0) < 1:
        raise CheckpointError(f"it does not say the hashes of runs of up to {size} tokens")
    if offsets[:count] != [sum(primes[:i]) for i in range(count)] or sum(primes[:count]) > rows:
        raise CheckpointError(f"rows of runs are not one head's behind the other's in the {rows} of '{TABLE}'")
    return {
        "ple_layer_ids": [layers[0] + 1],
        "ngram_size": size,
        "heads_per_ngram": heads,
        "ple_embed_dim": row * count,
        "ple_conv_kernel_size": meta.number("ple.conv_kernel"),
        HASHES: {
            "multipliers": multipliers[:size],
            "primes": primes[:count],
            "rows": rows,
            "end": meta.number("ple.eos_token_id"),
        },
    }


def streams(family: Family, meta: Metadata) -> dict[str, Any]:
    """Of several residual streams."""
    count = meta.number("hyper_connection.count")
    if family.gated_streams is not None:
        number, rank = family.gated_streams
        return {number.name: count, rank.name: meta.number("hyper_connection.low_rank")}
    if family.streams is None:
        return {}
    number, rounds, eps = family.streams
    return {
        number.name: count,
        rounds.name: meta.number("hyper_connection.sinkhorn_iterations"),
        eps.name: meta.get("hyper_connection.epsilon"),
    }


def kept_states(meta: Metadata, names: Collection[str]) -> dict[str, Any]:
    """Kimi-K3's: a residual stream with states that are kept, experts on a narrower latent, what bends its MLPs."""
    return {
        "rope_theta": None,  # nothing turns
        "mla_use_nope": True,
        "linear_attn_config": {BOUND: meta.get("kda.gate_lower_bound")},
        "routed_expert_hidden_size": meta.number("expert_latent_length") or None,
        NORMED: any(name.endswith(".ffn_routed_norm.weight") for name in names),
        "attn_res_block_size": meta.number("attn_res.block_size"),
        JOINED: True,
        "activation_situ_beta": meta.get("activation.situ_beta"),
        "activation_situ_linear_beta": meta.get("activation.situ_linear_beta"),
    }


def limit(meta: Metadata) -> float:
    """What experts, and other MLPs, are clamped to, the same in every layer; where nothing is, the largest number."""
    stated = [meta.get("swiglu_clamp_exp"), meta.get("swiglu_clamp_shexp")]
    found = {value for one in stated if one is not None for value in (one if isinstance(one, list) else [one])}
    if len(found) > 1:
        raise CheckpointError(f"it clamps experts to different limits: {', '.join(map(str, sorted(found)))}")
    return float(found.pop() if found else 0.0) or NO_LIMIT
