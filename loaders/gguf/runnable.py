"""From a GGUF header to the config.json of a family that the engine runs, which then reads and checks it as any other.

The keys are those that the family's literal names, and no others. What metadata leave out has the value that llama.cpp
takes for the arch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ...kernels import FORMATS
from ..architecture.architecture import Architecture
from ..families import FAMILIES
from ..families.family import Family, Key
from ..files.gguf_header import TYPES
from ..files.headers import Stored
from . import chooser_keys, mixer_keys
from .of_tensors import Metadata

# Archs of families that run; the others are planned under their own name.
ARCHS = {
    "granitemoe": "granitemoe", "llama": "mixtral", "olmoe": "olmoe", "qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe",
    "gpt-oss": "gpt_oss", "deepseek2": "deepseek_v3", "qwen3next": "qwen3_next", "qwen35moe": "qwen3_5_moe",
    "glm4moe": "glm4_moe", "minimax-m2": "minimax_m2", "dots1": "dots1", "ernie4_5-moe": "ernie4_5_moe",
    "exaone-moe": "exaone_moe", "hunyuan-moe": "hunyuan_v1_moe", "gemma4": "gemma4", "llama4": "llama4",
    "phimoe": "phimoe", "mistral4": "mistral4", "deepseek32": "deepseek_v32", "glm-dsa": "glm_moe_dsa",
    "kimi-linear": "kimi_linear", "mimo2": "mimo_v2_flash", "step35": "step3p5", "laguna": "laguna",
    "lfm2moe": "lfm2_moe", "granitehybrid": "granitemoehybrid", "nemotron_h_moe": "nemotron_h",
    "minimax-m3": "minimax_m3_vl", "glm5-next": "glm5_next", "qwen4exp": "qwen4_exp", "kimi-k3": "kimi_k3",
    "hy_v3": "hy_v3", "deepseek4": "deepseek_v4",
}  # fmt: skip
# Weights of experts are divided by their sum, which metadata leave out.
DIVIDED = ("qwen3_moe", "qwen3_next", "kimi_linear", "kimi_k3", "mimo_v2_flash", "lfm2_moe", "qwen4_exp")
SOFTMAX, SIGMOID = 1, 2  # how scores are made of logits, as metadata say it
SCORING = {SOFTMAX: "softmax", SIGMOID: "sigmoid", 3: "softmax of those chosen", 4: "square root of softplus"}


# Metadata that change what is computed, under the name of a config's key or their own: no family reads them from a
# file, so one that has them is refused by its config as every other that says more than is known.
CHANGING = (
    "attention.max_alibi_bias", "attention.output_scale", "attention.temperature_scale",
    "attn_logit_softcapping", "expert_group_scale", "experts_per_group", "final_logit_softcapping", "moe_latent_size",
    "moe_every_n_layers", "router_logit_softcapping", "rope.freq_base_swa", "rope.scaling.alpha",
    "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor", "swiglu_clamp_exp", "swiglu_clamp_shexp",
)  # fmt: skip

# Which families with two kinds of attention read.
OF_TWO_KINDS = ("rope.freq_base_swa", "swiglu_clamp_exp", "swiglu_clamp_shexp")
LIMITS = OF_TWO_KINDS[1:]  # of families whose layers are all clamped alike
WARM = "attention.temperature_scale"  # which those archs read that say it
WARM_ARCHS = ("mistral4",)


def family_of(metadata: Mapping[str, Any], tensors: Sequence[Stored], arch: str) -> str:
    """The family of an arch that runs, else the arch. The two generations of latent attention are one arch, told apart
    by the router's scores; where nothing is said of them, by the bias of a choice, which the second one has. A
    Granite-MoE with a shared expert is told by its tensors."""
    if arch == "granitemoe" and any("ffn_gate_shexp" in tensor.name for tensor in tensors):
        return "granitemoeshared"
    if arch != "deepseek2":
        return ARCHS.get(arch, arch)
    gating = metadata.get(f"{arch}.expert_gating_func")
    if gating is None:
        gating = SIGMOID if any(tensor.name.endswith("exp_probs_b.bias") for tensor in tensors) else SOFTMAX
    return "deepseek_v2" if gating == SOFTMAX else ARCHS[arch]


# Types of tensors that run. nvfp4 of a file has its row's factor in a tensor of its own, which nothing reads yet.
READABLE = ("F32", "F16", "BF16", *(
    name for name, block, _ in TYPES.values() if block > 1 and name.lower() in FORMATS and name != "NVFP4"
))  # fmt: skip


def config(metadata: Mapping[str, Any], tensors: Sequence[Stored], model: Architecture) -> dict[str, Any]:
    """The keys of a config.json; of a family that does not run its name and the context alone."""
    family = FAMILIES.get(model.family)
    context = "max_position_embeddings" if family is None else family.context
    values: dict[str, Any] = {"model_type": model.family, context: model.context}
    if family is None:
        return values
    meta = Metadata(values=metadata, arch=str(metadata["general.architecture"]))
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    experts = next(layer.experts for layer in model.layers if layer.experts)
    values |= _biases(family, {*shapes, *(name.split(".", 2)[-1] for name in shapes)})
    values |= {
        "vocab_size": model.vocab,
        "hidden_size": model.hidden,
        "num_hidden_layers": len(model.layers),
        family.norm_eps: meta.get("attention.layer_norm_rms_epsilon") or 1e-6,
        "rope_theta": meta.get("rope.freq_base") or 10000.0,
        family.activation_names[0]: family.activation_names[1][0],
        "tie_word_embeddings": model.tied_head,
        family.top_k: experts.top_k,
        family.experts[0]: experts.count,
        family.expert_width: experts.width,
    }
    read: tuple[str, ...] = OF_TWO_KINDS[:1] if family.full_attention else OF_TWO_KINDS if family.by_kind else ()
    read += LIMITS if family.mixer == "compressed" or family.runs else ()
    read += (WARM,) if meta.arch in WARM_ARCHS else ()
    changing = [name for name in CHANGING if name not in read]
    values |= {name: value for name in changing if (value := meta.get(name)) is not None}
    if (causal := meta.get("attention.causal")) is not None:
        values["is_causal"] = causal
    if gating := meta.get("expert_gating_func"):
        values["scoring_func"] = _scoring(family, gating)
    said = meta.get("expert_weights_norm")
    if isinstance(family.renormalise, Key):
        values[family.renormalise.name] = model.family in DIVIDED if said is None else bool(said)
    elif said is not None:
        values["norm_topk_prob"] = bool(said)
    beside = ".ffn_gate.weight" if family.own_norms else ".ffn_up_shexp.weight"
    shared = next((s[0] for n, s in shapes.items() if n.endswith(beside)), 0)
    if family.shared_width:
        values[family.shared_width] = shared
    if family.shared_experts is not None:
        values[family.shared_experts] = meta.number("expert_shared_count") or shared // experts.width
    values |= _dense_layers(family, meta, model, shapes) | _scales(family, meta)
    return values | chooser_keys.streams(family, meta) | mixer_keys.of(family, meta, shapes)


def _scoring(family: Family, gating: int) -> str:
    """What a config calls it; of families that take the softmax of those chosen alone, as others call theirs."""
    if gating == 4 and family.scoring == "sqrt_softplus":
        return "sqrtsoftplus"
    return "softmax" if gating == 3 and family.scoring == "softmax_topk" else SCORING.get(gating, str(gating))


def _biases(family: Family, names: Collection[str]) -> dict[str, Any]:
    """Whether projections and the choice have biases, and queries and keys norms, where the family's config says that.
    names: of tensors, without their layers."""
    tensors = {
        "attn_output.bias": family.output_bias, "attn_q.bias": family.qkv_bias, "attn_q_norm.weight": family.qk_norm_if,
        "output.bias": family.head_bias, "exp_probs_b.bias": family.choice_bias,
    }  # fmt: skip
    return {key.name: tensor in names for tensor, key in tensors.items() if isinstance(key, Key)}


def _dense_layers(
    family: Family, meta: Metadata, model: Architecture, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """Which layers have no experts, and how wide they are."""
    if not family.dense_width:
        return {}
    dense = [i for i, layer in enumerate(model.layers) if layer.experts is None]
    experts = next(layer.experts for layer in model.layers if layer.experts)
    width = next((shapes[f"blk.{i}.ffn_up.weight"][0] for i in dense if f"blk.{i}.ffn_up.weight" in shapes), 0)
    found: dict[str, Any] = {family.dense_width: width or meta.number("feed_forward_length") or experts.width}
    if family.one_part:
        return found
    if family.leading_dense:
        return found | {family.dense_count: len(dense)}
    if family.range_of_experts:
        sparse = [i for i in range(len(model.layers)) if i not in dense]
        step = meta.number("interleave_moe_layer_step") or 1
        return found | {
            "moe_layer_start_index": sparse[0], "moe_layer_end_index": sparse[-1], "moe_layer_interval": step
        }  # fmt: skip
    if family.interleaved_experts:
        return found | {"moe_layers": [i for i in range(len(model.layers)) if i not in dense]}
    return found | {"decoder_sparse_step": 1, "mlp_only_layers": dense}


def _scales(family: Family, meta: Metadata) -> dict[str, Any]:
    """Multipliers of families that have them, and what queries, keys and values are clipped to."""
    keys = {
        family.attention_scale: "attention.scale",
        family.embedding_scale: "embedding_scale",
        family.residual_scale: "residual_scale",
        family.logits_divisor: "logit_scale",
    }
    found = {key.name: meta.get(name) or 1.0 for key, name in keys.items() if isinstance(key, Key)}
    if family.weight_scale is not None:
        found[family.weight_scale.name] = meta.get("expert_weights_scale") or 1.0
    if family.grouped_choice:
        found[family.groups] = meta.number("expert_group_count") or 1
        found["topk_group"] = meta.number("expert_group_used_count") or 1
    if family.runs and family.activation_limit is not None:
        found[family.activation_limit.name] = chooser_keys.limit(meta)
    if family.clip is not None:
        found[family.clip.name] = meta.get("attention.clamp_kqv") or None
    return found
