"""From a GGUF header to the config.json of a family that the engine runs, which then reads and checks it as any other.

The keys are those that the family's literal names, and no others. What metadata leave out has the value that llama.cpp
takes for the arch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...kernels import FORMATS
from ..architecture.architecture import Architecture
from ..families import FAMILIES
from ..families.family import Family, Key
from ..files.gguf_header import TYPES
from ..files.headers import Stored
from .of_tensors import Metadata

# Archs of families that run; the others are planned under their own name.
ARCHS = {
    "granitemoe": "granitemoe", "llama": "mixtral", "olmoe": "olmoe", "qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe",
}  # fmt: skip

# Types of tensors that run. nvfp4 of a file has its row's factor in a tensor of its own, which nothing reads yet.
READABLE = ("F32", "F16", "BF16", *(
    name for name, block, _ in TYPES.values() if block > 1 and name.lower() in FORMATS and name != "NVFP4"
))  # fmt: skip


def config(metadata: Mapping[str, Any], tensors: Sequence[Stored], model: Architecture) -> dict[str, Any]:
    """The keys of a config.json; of a family that does not run its name and the context alone."""
    values: dict[str, Any] = {"model_type": model.family, "max_position_embeddings": model.context}
    if model.family not in FAMILIES:
        return values
    family = FAMILIES[model.family]
    meta = Metadata(values=metadata, arch=str(metadata["general.architecture"]))
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    experts = next(layer.experts for layer in model.layers if layer.experts)
    heads = meta.number("attention.head_count")
    biased = {"qkv_bias": "attn_q.bias", "output_bias": "attn_output.bias"}
    names = {name.split(".", 2)[-1] for name in shapes}
    keys = {
        getattr(family, field): tensor in names
        for field, tensor in biased.items()
        if isinstance(getattr(family, field), Key)
    }
    values |= {key.name: has for key, has in keys.items()}
    values |= {
        "vocab_size": model.vocab,
        "hidden_size": model.hidden,
        "num_hidden_layers": len(model.layers),
        "num_attention_heads": heads,
        "num_key_value_heads": meta.number("attention.head_count_kv", default=heads),
        "head_dim": meta.number("attention.key_length", default=model.hidden // max(heads, 1)),
        "rms_norm_eps": meta.get("attention.layer_norm_rms_epsilon") or 1e-6,
        "rope_theta": meta.get("rope.freq_base") or 10000.0,
        "rope_scaling": _rope_scaling(meta),
        "hidden_act": "silu",
        "tie_word_embeddings": model.tied_head,
        "num_experts_per_tok": experts.top_k,
        family.experts[0]: experts.count,
        family.expert_width: experts.width,
    }
    if isinstance(family.renormalise, Key):
        said = meta.get("expert_weights_norm")
        values[family.renormalise.name] = model.family == "qwen3_moe" if said is None else bool(said)
    if family.shared_width:
        values[family.shared_width] = next((s[0] for n, s in shapes.items() if n.endswith("ffn_gate_shexp.weight")), 0)
    if family.dense_width:
        dense = [i for i, layer in enumerate(model.layers) if layer.experts is None]
        width = next((shapes[f"blk.{i}.ffn_gate.weight"][0] for i in dense if f"blk.{i}.ffn_gate.weight" in shapes), 0)
        values[family.dense_width] = width or meta.number("feed_forward_length") or experts.width
        values |= {"decoder_sparse_step": 1, "mlp_only_layers": dense}
    return values | _scales(family, meta) | _partial_rope(meta, values["head_dim"])


def _scales(family: Family, meta: Metadata) -> dict[str, Any]:
    """Multipliers of families that have them, and what queries, keys and values are clipped to."""
    keys = {
        family.attention_scale: "attention.scale",
        family.embedding_scale: "embedding_scale",
        family.residual_scale: "residual_scale",
        family.logits_divisor: "logit_scale",
    }
    found = {key.name: meta.get(name) or 1.0 for key, name in keys.items() if key is not None}
    if family.clip is not None:
        found[family.clip.name] = meta.get("attention.clamp_kqv") or None
    return found


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
    return {"rope_type": kind, **{name: value for name, value in found.items() if value is not None}}


def _partial_rope(meta: Metadata, head_dim: int) -> dict[str, Any]:
    """Which share of a head is turned, where not all of it is."""
    turned = meta.number("rope.dimension_count", default=head_dim)
    return {} if turned == head_dim or not head_dim else {"partial_rotary_factor": turned / head_dim}
