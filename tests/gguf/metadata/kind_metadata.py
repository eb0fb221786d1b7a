"""The metadata that llama.cpp's converter writes for families whose attention differs by the kind of a layer:
MiMo-V2-Flash, Step-3.5, Laguna."""

from __future__ import annotations

import math
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

ARCHS = {"mimo_v2_flash": "mimo2", "step3p5": "step35", "laguna": "laguna"}
NAMED_AS = {"laguna": "step35", "deepseek32": "glm-dsa"}  # which the gguf package has no tables of their own for
FULL, SLIDING = "full_attention", "sliding_attention"


def add(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any]) -> None:
    """All of them but the tokenizer's."""
    kinds, size = config["layer_types"], config["head_dim"]
    slides = [kind == SLIDING for kind in kinds]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(size)
    writer.add_value_length(config.get("v_head_dim") or size)
    if any(slides):
        writer.add_sliding_window(config["sliding_window"])
    if arch != "laguna":  # every fourth from the first on, by the arch
        writer.add_sliding_window_pattern(config.get("windows", slides))
    _ropes(writer, arch, config)
    writer.add_leading_dense_block_count(config["mlp_layer_types"].index("sparse"))
    writer.add_expert_count(config.get("n_routed_experts") or config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    {"mimo2": _mimo2, "step35": _step35, "laguna": _laguna}[arch](writer, config, slides)


def _ropes(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any]) -> None:
    ropes, size = config["rope_parameters"], config["head_dim"]
    full, slides = ropes[FULL], ropes.get(SLIDING)
    writer.add_rope_freq_base(full["rope_theta"])
    if slides:
        writer.add_rope_freq_base_swa(slides["rope_theta"])
    turned = int(size * full["partial_rotary_factor"])
    writer.add_rope_dimension_count(size if arch == "step35" else turned)  # which turns half of it
    if arch == "laguna" and slides:
        writer.add_rope_dimension_count_swa(int(size * slides["partial_rotary_factor"]))
    if full["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(full["factor"])
        writer.add_rope_scaling_orig_ctx_len(full["original_max_position_embeddings"])


def _mimo2(writer: gguf.GGUFWriter, config: dict[str, Any], slides: list[bool]) -> None:
    groups = config["num_key_value_heads"]
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv([groups * 2 if one else groups for one in slides])
    if config["attention_value_scale"] is not None:
        writer.add_float32("mimo2.attention.value_scale", config["attention_value_scale"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_group_count(config["n_group"])
    writer.add_expert_group_used_count(config["topk_group"])


def _step35(writer: gguf.GGUFWriter, config: dict[str, Any], slides: list[bool]) -> None:
    heads = {False: config["num_attention_heads"], True: config["num_sliding_attention_heads"]}
    writer.add_head_count([heads[one] for one in slides])
    writer.add_head_count_kv([config["num_key_value_heads"]] * len(slides))
    writer.add_expert_shared_feed_forward_length(config["share_expert_dim"])
    writer.add_expert_weights_scale(config["moe_router_scaling_factor"])
    writer.add_expert_weights_norm(True)
    for key, name in (("swiglu_limits", "swiglu_clamp_exp"), ("swiglu_limits_shared", "swiglu_clamp_shexp")):
        writer.add_array(f"step35.{name}", [float(limit or 0.0) for limit in config[key]])


def _laguna(writer: gguf.GGUFWriter, config: dict[str, Any], slides: list[bool]) -> None:
    writer.add_head_count(config["num_attention_heads_per_layer"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    writer.add_expert_weights_scale(config["moe_routed_scaling_factor"])
    writer.add_expert_weights_norm(True)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def stretched(config: dict[str, Any]) -> NDArray[np.float32]:
    """What frequencies of the layers that see everything are divided by, by Llama 3's rule; the rest is 1."""
    rope, size = config["rope_parameters"][FULL], config["head_dim"]
    turned = int(size * rope["partial_rotary_factor"])
    found = []
    for pair in range(turned // 2):
        waves = 2 * math.pi * rope["rope_theta"] ** (2 * pair / turned)
        trained = rope["original_max_position_embeddings"]
        smooth = (trained / waves - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
        smooth = min(1.0, max(0.0, smooth))
        found.append(1.0 / ((1.0 - smooth) / rope["factor"] + smooth))
    return np.array(found + [1.0] * (size // 2 - len(found)), dtype=np.float32)
