"""From a GGUF header to the config.json of a family that the engine runs: shapes for a model of random weights.

The keys are those that the family's literal names, and no others. Settings that change no size have the values that
released models have: they decide on text, not on speed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..architecture.architecture import Architecture
from ..families import FAMILIES
from ..families.family import Key
from ..files.headers import Stored
from .of_tensors import Metadata

# Archs of families that run; the others are planned under their own name.
ARCHS = {
    "granitemoe": "granitemoe", "llama": "mixtral", "olmoe": "olmoe", "qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe",
}  # fmt: skip


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
        "hidden_act": "silu",
        "tie_word_embeddings": model.tied_head,
        "num_experts_per_tok": experts.top_k,
        family.experts[0]: experts.count,
        family.expert_width: experts.width,
    }
    if isinstance(family.renormalise, Key):
        values[family.renormalise.name] = model.family == "qwen3_moe"
    if family.shared_width:
        values[family.shared_width] = next((s[0] for n, s in shapes.items() if n.endswith("ffn_gate_shexp.weight")), 0)
    if family.dense_width:
        dense = [i for i, layer in enumerate(model.layers) if layer.experts is None]
        width = next((shapes[f"blk.{i}.ffn_gate.weight"][0] for i in dense if f"blk.{i}.ffn_gate.weight" in shapes), 0)
        values[family.dense_width] = width or meta.number("feed_forward_length") or experts.width
        values |= {"decoder_sparse_step": 1, "mlp_only_layers": dense}
    scales = (family.attention_scale, family.embedding_scale, family.residual_scale, family.logits_divisor)
    return values | {key.name: 1.0 for key in scales if key}
