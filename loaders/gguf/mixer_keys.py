"""From a GGUF's metadata to the keys of a config.json that say how tokens look at each other: attention in full or over
a window, latent attention, recurrences; and how positions are rotated."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ...errors import CheckpointError
from ..families.family import Family
from ..families.mixer_reader import LINEAR
from ..families.rope import TRAINED, WARMTH
from ..families.window import FULL, SLIDING
from . import chooser_keys
from .of_tensors import CHUNKS, Metadata, layers_of, window_of

# Archs whose range of stretched frequencies is not rounded to whole dims.
NOT_ROUNDED = ("gpt-oss",)
# Archs whose heads of values are by turns of the heads of keys.
IN_TURNS = ("qwen35moe", "qwen4exp")


# Of the pairs of a head that sees everything, those that are turned: metadata leave it out, a tensor says it.
TURNED = 0.25
# Archs whose heads that see everything turn this share of what metadata say, and those over a window all of it.
PART_TURNED = {"step35": 0.5}
Shapes = Mapping[str, tuple[int, ...]]


def of(family: Family, meta: Metadata, shapes: Shapes) -> dict[str, Any]:
    """The keys of a family's mixers; shapes: of the file's tensors, by name."""
    if family.by_kind:
        return _by_kind(family, meta, shapes)
    if family.full_attention:
        return _of_two_kinds(meta, shapes)
    if family.mixer == "latent":
        chooses = chooser_keys.latent(meta, shapes, family.index_shared) if family.indexer else {}
        return _latent(meta) | chooses
    if family.mixer == "latent and delta":
        found = _latent(meta, may_be_still=family.runs) | _key_delta(meta, shapes)
        if family.bends:
            return found | chooser_keys.kept_states(meta, shapes)
        return found | (chooser_keys.runs_of_latents(meta, shapes, found["layer_types"]) if family.runs else {})
    if family.mixer == "compressed":
        return _compressed(meta)
    found = _grouped(meta)
    if family.block_layers:
        return found | chooser_keys.blocks(family, meta, shapes)
    if family.chunked:
        return found | _in_chunks(meta)
    if family.windowed:
        found["sliding_window"] = meta.number("attention.sliding_window")
    if family.full_without_rope:
        sees = [window_of(meta, layer) for layer in range(layers_of(meta))]
        found["layer_types"] = [SLIDING if window else FULL for window in sees]
    if family.mixer == "delta":
        found |= _delta(meta) | (chooser_keys.runs_and_grams(meta, shapes) if family.has_grams else {})
    if family.mixer == "conv":
        found |= {"conv_L_cache": meta.number("shortconv.l_cache"), "layer_types": _kinds(meta, "conv")}
        found["conv_bias"] = any(name.endswith(".shortconv.in_proj.bias") for name in shapes)
    if family.mixer == "state space":
        found |= _space(family, meta, shapes)
    return found


def _compressed(meta: Metadata) -> dict[str, Any]:
    """Attention to a window and to compressed entries, with what else its family alone has."""
    limits = {*_limits(meta, "swiglu_clamp_exp"), *_limits(meta, "swiglu_clamp_shexp")}
    if len(limits) != 1:
        raise CheckpointError(f"its experts are clamped to {sorted(limits)}, one number for all layers is needed")
    streams, indexer = "hyper_connection", "attention.indexer"
    return {
        "num_attention_heads": meta.number("attention.head_count"),
        "num_key_value_heads": meta.number("attention.head_count_kv", default=1),
        "head_dim": meta.number("attention.key_length"),
        "qk_rope_head_dim": meta.number("rope.dimension_count"),
        "q_lora_rank": meta.number("attention.q_lora_rank"),
        "o_groups": meta.number("attention.output_group_count"),
        "o_lora_rank": meta.number("attention.output_lora_rank"),
        "sliding_window": meta.number("attention.sliding_window"),
        "compress_ratios": meta.get("attention.compress_ratios"),
        "compress_rope_theta": meta.get("attention.compress_rope_freq_base"),
        "rope_scaling": _rope_scaling(meta),
        "index_n_heads": meta.number(f"{indexer}.head_count"),
        "index_head_dim": meta.number(f"{indexer}.key_length"),
        "index_topk": meta.number(f"{indexer}.top_k"),
        "num_hash_layers": meta.number("hash_layer_count"),
        "hc_mult": meta.number(f"{streams}.count"),
        "hc_sinkhorn_iters": meta.number(f"{streams}.sinkhorn_iterations"),
        "hc_eps": meta.get(f"{streams}.epsilon"),
        "swiglu_limit": limits.pop(),
    }


def _limits(meta: Metadata, name: str) -> list[float]:
    """Of each layer what its experts, or the shared one, are clamped to; where the second is left out it is the
    first."""
    found = meta.get(name)
    return [] if found is None else found if isinstance(found, list) else [found]


def _grouped(meta: Metadata) -> dict[str, Any]:
    heads, hidden = meta.number("attention.head_count"), meta.number("embedding_length")
    size = meta.number("attention.key_length", default=hidden // max(heads, 1))
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": meta.number("attention.head_count_kv", default=heads),
        "head_dim": size,
        "rope_scaling": _rope_scaling(meta),
        "partial_rotary_factor": _turned(meta, "", size),
    }


# Numbers of experts of models whose queries and keys have no norm, which metadata leave out: Maverick's.
WITHOUT_NORM = (128,)


def _in_chunks(meta: Metadata) -> dict[str, Any]:
    """Layers that keep to chunks turn, and the others do not; without chunks all of them turn."""
    chunks = [window_of(meta, layer) for layer in range(layers_of(meta))]
    stated = meta.get("attention.sliding_window")
    if stated == 0:
        chunks = [None] * len(chunks)
    return {
        "attention_chunk_size": None if stated == 0 else stated or CHUNKS[meta.arch],
        "no_rope_layers": [1 if chunk or stated == 0 else 0 for chunk in chunks],
        "use_qk_norm": meta.number("expert_count") not in WITHOUT_NORM,
    }


def _of_two_kinds(meta: Metadata, shapes: Shapes) -> dict[str, Any]:
    """Layers over a window and such that see everything; keys and values by layer, or of all layers alike."""
    pattern, count = meta.get("attention.sliding_window_pattern"), meta.number("block_count")
    if not isinstance(pattern, list) or len(pattern) < count or all(pattern[:count]) or not any(pattern[:count]):
        raise CheckpointError("it does not say which layers see a window, and which see everything")
    kinds = [SLIDING if slides else FULL for slides in pattern[:count]]
    slides, full = kinds.index(SLIDING), kinds.index(FULL)
    bases = {SLIDING: meta.get("rope.freq_base_swa") or 10000.0, FULL: meta.get("rope.freq_base") or 10000.0}
    size = meta.number("attention.key_length_swa")
    return {
        "num_attention_heads": meta.number("attention.head_count"),
        "num_key_value_heads": meta.number("attention.head_count_kv", slides),
        "num_global_key_value_heads": meta.number("attention.head_count_kv", full),
        "head_dim": size,
        "global_head_dim": meta.number("attention.key_length"),
        "attention_k_eq_v": f"blk.{full}.attn_v.weight" not in shapes,
        "layer_types": kinds,
        "sliding_window": meta.number("attention.sliding_window"),
        "rope_theta": None,
        "rope_parameters": {
            SLIDING: {"rope_theta": bases[SLIDING], "partial_rotary_factor": _turned(meta, "_swa", size)},
            FULL: {"rope_type": "proportional", "rope_theta": bases[FULL], "partial_rotary_factor": TURNED},
        },
        "enable_moe_block": True,
        "hidden_size_per_layer_input": meta.number("embedding_length_per_layer_input"),
        "num_kv_shared_layers": meta.number("attention.shared_kv_layers"),
    }


def _by_kind(family: Family, meta: Metadata, shapes: Shapes) -> dict[str, Any]:
    """Layers over a window and such that see everything, with numbers of heads and ropes of their own."""
    count, found = layers_of(meta), _grouped(meta)
    kinds = [SLIDING if window_of(meta, layer) else FULL for layer in range(count)]
    found |= {
        "num_attention_heads_per_layer": [meta.number("attention.head_count", layer) for layer in range(count)],
        **_groups(meta, kinds),
        "layer_types": kinds,
        "sliding_window": meta.number("attention.sliding_window") or None,
        "rope_theta": None,
        "rope_scaling": None,
        "partial_rotary_factor": None,
        "rope_parameters": _ropes(meta, found),
    }
    if family.v_dim is not None:
        found[family.v_dim] = meta.number("attention.value_length", default=found["head_dim"])
    if family.v_scale is not None:
        found[family.v_scale.name] = meta.get("attention.value_scale")
    if family.head_gate is not None:
        gates = shapes.get("blk.0.attn_gate.weight", (0,))[0]
        found["gating"] = "per-head" if gates == meta.number("attention.head_count", 0) else "per-element"
    for key, name in zip(family.layer_limits or (), ("swiglu_clamp_exp", "swiglu_clamp_shexp"), strict=False):
        found[key] = meta.get(name)
    return found


def _groups(meta: Metadata, kinds: list[str]) -> dict[str, Any]:
    """Heads of keys of either kind of layers."""
    heads = [meta.number("attention.head_count", layer) for layer in range(len(kinds))]
    groups = [meta.number("attention.head_count_kv", layer, n) for layer, n in enumerate(heads)]
    each = dict(zip(kinds, groups, strict=True))
    if any(each[kind] != n for kind, n in zip(kinds, groups, strict=True)):
        raise CheckpointError("layers of one kind have different numbers of heads of keys")
    return {"num_key_value_heads": each.get(FULL, groups[0]), "swa_num_key_value_heads": each.get(SLIDING)}


def _ropes(meta: Metadata, found: Mapping[str, Any]) -> dict[str, Any]:
    """Of either kind of layers; a context is stretched for those alone that see everything."""
    size, base = found["head_dim"], meta.get("rope.freq_base") or 10000.0
    full = _turned(meta, "", size)
    slides = _turned(meta, "_swa", size) if meta.get("rope.dimension_count_swa") else full
    full *= PART_TURNED.get(meta.arch, 1.0)
    return {
        FULL: {**(found["rope_scaling"] or {}), "rope_theta": base, "partial_rotary_factor": full},
        SLIDING: {"rope_theta": meta.get("rope.freq_base_swa") or base, "partial_rotary_factor": slides},
    }


def _turned(meta: Metadata, kind: str, size: int) -> float:
    """The share of a head that is turned."""
    return meta.number(f"rope.dimension_count{kind}", default=size) / max(size, 1)


def _latent(meta: Metadata, may_be_still: bool = False) -> dict[str, Any]:
    """Newer files give the sizes of heads before latents are made of them under names of their own. may_be_still: keys
    may have no dims that are turned."""
    rope = meta.number("rope.dimension_count")
    key = meta.number("attention.key_length_mla") or meta.number("attention.key_length")
    value = meta.number("attention.value_length_mla") or meta.number("attention.value_length")
    if not (rope or may_be_still) or rope >= key:
        raise CheckpointError(f"it rotates {rope} of {key} dims of a key")
    scaling = _rope_scaling(meta)
    if scaling is not None and (m := meta.get("rope.scaling.yarn_log_multiplier")):
        scaling |= {"mscale": 10.0 * m, "mscale_all_dim": 10.0 * m}  # stored is 0.1 of it
    scaling = _warm(meta, scaling)
    return {
        "num_attention_heads": meta.number("attention.head_count"),
        "q_lora_rank": meta.number("attention.q_lora_rank") or None,
        "kv_lora_rank": meta.number("attention.kv_lora_rank"),
        "qk_nope_head_dim": key - rope,
        "qk_rope_head_dim": rope,
        "v_head_dim": value,
        "rope_scaling": scaling,
    }


def _warm(meta: Metadata, scaling: dict[str, Any] | None) -> dict[str, Any] | None:
    """The scaling of a context with the temperature of queries beyond what was trained, where the file says it."""
    scale, length = meta.get("attention.temperature_scale"), meta.number("attention.temperature_length")
    if not scale or scaling is None:
        return scaling
    if length and length != scaling.get(TRAINED):
        raise CheckpointError(f"its queries become warmer from position {length} on, not behind the trained context")
    return scaling | {WARMTH: scale}


def _key_delta(meta: Metadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Delta rules with decays by key; which layers have one say their tensors."""
    heads = [shapes.get(f"blk.{i}.ssm_beta.weight") for i in range(layers_of(meta))]
    return {
        "layer_types": [LINEAR if shape else FULL for shape in heads],
        "linear_head_dim": meta.number("kda.head_dim"),
        "linear_num_heads": next((shape[0] for shape in heads if shape), 1),
        "linear_conv_kernel_dim": meta.number("ssm.conv_kernel"),
    }


def _delta(meta: Metadata) -> dict[str, Any]:
    k_heads, v_heads = meta.number("ssm.group_count"), meta.number("ssm.time_step_rank")
    recurrent = meta.get("attention.recurrent_layers")
    layers = {"layer_types": [LINEAR if one else FULL for one in recurrent]} if isinstance(recurrent, list) else {}
    return layers | {
        "linear_num_key_heads": k_heads,
        "linear_num_value_heads": v_heads,
        "linear_key_head_dim": meta.number("ssm.state_size"),
        "linear_value_head_dim": meta.number("ssm.inner_size") // max(v_heads, 1),
        "linear_conv_kernel_dim": meta.number("ssm.conv_kernel"),
        "full_attention_interval": meta.number("full_attention_interval", default=4),
        "value_heads_in_turns": meta.arch in IN_TURNS and k_heads != v_heads,
    }


def _space(family: Family, meta: Metadata, names: Collection[str]) -> dict[str, Any]:
    """Of attention beside state spaces nothing is turned, unless a file says so."""
    heads = meta.number("ssm.time_step_rank")
    found: dict[str, Any] = {
        "mamba_n_heads": heads,
        "mamba_n_groups": meta.number("ssm.group_count", default=1),
        "mamba_d_state": meta.number("ssm.state_size"),
        "mamba_d_head": meta.number("ssm.inner_size") // max(heads, 1),
        "mamba_d_conv": meta.number("ssm.conv_kernel"),
        "mamba_conv_bias": any(name.endswith(".ssm_conv1d.bias") for name in names),
        "mamba_proj_bias": any(name.endswith(".ssm_in.bias") for name in names),
    }
    if family.one_part:
        return found | {"layers_block_type": _parts(meta, names)}
    turns = "rope" if meta.get("rope.scaling.finetuned") is True else "nope"
    return found | {"layer_types": _kinds(meta, "mamba"), "position_embedding_type": turns}


def _kinds(meta: Metadata, recurrent: str) -> list[str]:
    """What layers are: those without heads of keys are recurrent."""
    counts = [meta.number("attention.head_count_kv", layer) for layer in range(layers_of(meta))]
    return [FULL if count else recurrent for count in counts]


def _parts(meta: Metadata, names: Collection[str]) -> list[str]:
    """What layers of one part are, by a tensor that each kind has."""
    of_kind = {"mamba": "ssm_in", "attention": "attn_q", "moe": "ffn_gate_inp", "mlp": "ffn_up"}
    return [
        next((kind for kind, name in of_kind.items() if f"blk.{layer}.{name}.weight" in names), "of no kind")
        for layer in range(layers_of(meta))
    ]


def _rope_scaling(meta: Metadata) -> dict[str, Any] | None:
    """The settings of a stretched context, under the names of a config.json; None: it is not stretched."""
    kind = meta.get("rope.scaling.type")
    if kind in (None, "none"):
        return None
    names = {
        "factor": "factor", "original_max_position_embeddings": "original_context_length",
        "beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow", "attention_factor": "attn_factor",
    }  # fmt: skip
    found = {name: meta.get(f"rope.scaling.{stored}") for name, stored in names.items()}
    found = {"rope_type": kind, **{name: value for name, value in found.items() if value is not None}}
    return found | {"truncate": False} if meta.arch in NOT_ROUNDED else found
