"""The metadata that llama.cpp's converter writes for families of plain attention that have dense layers, a shared
expert or a biased choice: GLM-4.5, MiniMax-M2, dots.llm1, ERNIE-4.5, K-EXAONE, Hunyuan."""

from __future__ import annotations

from typing import Any

import gguf

ARCHS = {
    "glm4_moe": "glm4moe", "minimax_m2": "minimax-m2", "dots1": "dots1", "ernie4_5_moe": "ernie4_5-moe",
    "exaone_moe": "exaone-moe", "hunyuan_v1_moe": "hunyuan-moe",
}  # fmt: skip
COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
TAKEN = ("num_experts_per_tok", "moe_topk", "moe_k")


def first(config: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    """The value of the first of these keys that is there."""
    return next((config[key] for key in keys if config.get(key) is not None), None)


def add(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any]) -> None:
    """All of them but the tokenizer's."""
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    _rope(writer, config["rope_parameters"], head_dim)
    if arch == "exaone-moe":
        writer.add_sliding_window(config["sliding_window"])
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])
    _experts(writer, arch, config)


def _rope(writer: gguf.GGUFWriter, rope: dict[str, Any], head_dim: int) -> None:
    """An alpha is put into theta."""
    alpha = rope.get("alpha", 1.0)
    writer.add_rope_freq_base(rope["rope_theta"] * alpha ** (head_dim / (head_dim - 2)))
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))


def _experts(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any]) -> None:
    writer.add_expert_count(first(config, COUNTS) or 0)
    writer.add_expert_used_count(first(config, TAKEN) or 0)
    writer.add_expert_feed_forward_length(config.get("moe_intermediate_size") or config["intermediate_size"])
    if (shared := first(config, SHARED)) is not None:
        writer.add_expert_shared_count(shared)
    if arch == "ernie4_5-moe":
        writer.add_interleave_moe_layer_step(config["moe_layer_interval"])
        writer.add_leading_dense_block_count(config["moe_layer_start_index"])
    if arch == "hunyuan-moe":
        writer.add_expert_shared_feed_forward_length(config["intermediate_size"])
    if arch in ("glm4moe", "dots1", "exaone-moe"):
        writer.add_leading_dense_block_count(config["first_k_dense_replace"])
        writer.add_expert_weights_scale(config["routed_scaling_factor"])
        writer.add_expert_weights_norm(config["norm_topk_prob"])
        writer.add_expert_group_count(config["n_group"])
        writer.add_expert_group_used_count(config["topk_group"])
    if arch not in ("ernie4_5-moe", "hunyuan-moe"):
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
