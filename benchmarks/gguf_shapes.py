"""Names and shapes of the tensors of a layer in GGUF files of Qwen3-MoE and Qwen3.5-MoE, and their metadata, as
llama.cpp's loader wants them; from a config with keys as in config.json. Knows no types of numbers."""

from __future__ import annotations

from typing import Any

Shapes = dict[str, tuple[int, ...]]
ARCHS = {"qwen3_moe": "qwen3moe", "qwen3_5_moe_text": "qwen35moe"}
# Of vectors: what a gated delta rule forgets by, and a norm before experts, so small that tokens go to many of them.
VALUES = {"ssm_a": -0.5, "ssm_dt": 0.5, "post_attention_norm": 0.001}


def arch(config: dict[str, Any]) -> str:
    """The name of its architecture in such files."""
    return ARCHS[config["model_type"]]


def of_layer(config: dict[str, Any], layer: int) -> Shapes:
    """By name behind `blk.N.`, row-major."""
    if arch(config) == "qwen3moe":
        return {**_attention(config, 1), "ffn_norm.weight": (config["hidden_size"],), **_experts(config)}
    mixer = _attention(config, 2) if _is_full(config, layer) else _delta(config)
    return {**mixer, "post_attention_norm.weight": (config["hidden_size"],), **_experts(config), **_shared(config)}


def _is_full(config: dict[str, Any], layer: int) -> bool:
    return (layer + 1) % int(config["full_attention_interval"]) == 0


def _attention(config: dict[str, Any], parts: int) -> Shapes:
    """parts: 2 where queries come with gates."""
    hidden, head = config["hidden_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    return {
        "attn_norm.weight": (hidden,), "attn_q.weight": (parts * q, hidden), "attn_k.weight": (kv, hidden),
        "attn_v.weight": (kv, hidden), "attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,),
        "attn_output.weight": (hidden, q),
    }  # fmt: skip


def _delta(config: dict[str, Any]) -> Shapes:
    hidden, heads, size = config["hidden_size"], config["linear_num_value_heads"], config["linear_value_head_dim"]
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    values = heads * size
    return {
        "attn_norm.weight": (hidden,), "attn_qkv.weight": (2 * keys + values, hidden),
        "attn_gate.weight": (values, hidden),
        "ssm_conv1d.weight": (2 * keys + values, config["linear_conv_kernel_dim"]), "ssm_dt.bias": (heads,),
        "ssm_a": (heads,), "ssm_beta.weight": (heads, hidden), "ssm_alpha.weight": (heads, hidden),
        "ssm_norm.weight": (size,), "ssm_out.weight": (hidden, values),
    }  # fmt: skip


def _experts(config: dict[str, Any]) -> Shapes:
    hidden, width, count = config["hidden_size"], config["moe_intermediate_size"], config["num_experts"]
    return {
        "ffn_gate_inp.weight": (count, hidden), "ffn_gate_exps.weight": (count, width, hidden),
        "ffn_up_exps.weight": (count, width, hidden), "ffn_down_exps.weight": (count, hidden, width),
    }  # fmt: skip


def _shared(config: dict[str, Any]) -> Shapes:
    hidden, width = config["hidden_size"], config["shared_expert_intermediate_size"]
    return {
        "ffn_gate_inp_shexp.weight": (hidden,), "ffn_gate_shexp.weight": (width, hidden),
        "ffn_up_shexp.weight": (width, hidden), "ffn_down_shexp.weight": (hidden, width),
    }  # fmt: skip


def write_metadata(writer: Any, config: dict[str, Any]) -> None:
    """All of it; there is no vocabulary: prompts are token ids. writer: a GGUFWriter."""
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    if "intermediate_size" in config:
        writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters") or config
    writer.add_rope_freq_base(rope["rope_theta"])
    if arch(config) == "qwen35moe":
        _write_delta(writer, config)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")


def _write_delta(writer: Any, config: dict[str, Any]) -> None:
    heads, rope = config["linear_num_value_heads"], config["rope_parameters"]
    writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
    writer.add_ssm_state_size(config["linear_key_head_dim"])
    writer.add_ssm_group_count(config["linear_num_key_heads"])
    writer.add_ssm_time_step_rank(heads)
    writer.add_ssm_inner_size(heads * config["linear_value_head_dim"])
    writer.add_full_attention_interval(config["full_attention_interval"])
    writer.add_rope_dimension_count(int(config["head_dim"] * rope["partial_rotary_factor"]))
    writer.add_rope_dimension_sections([*rope["mrope_section"], 0])
