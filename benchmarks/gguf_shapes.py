"""Names and shapes of the tensors of a layer in GGUF files of Qwen3-MoE, Qwen3.5-MoE, gpt-oss and DeepSeek-V3, and
their metadata, as llama.cpp's loader wants them; from a config with keys as in config.json. Knows no types."""

from __future__ import annotations

from typing import Any

Shapes = dict[str, tuple[int, ...]]
ARCHS = {
    "qwen3_moe": "qwen3moe", "qwen3_5_moe_text": "qwen35moe", "gpt_oss": "gpt-oss", "deepseek_v3": "deepseek2",
    "kimi_k2": "deepseek2",
}  # fmt: skip
# Of vectors: what a gated delta rule forgets by, a norm before experts, so small that tokens go to many of them, and
# what is added to products and scores.
VALUES = {"ssm_a": -0.5, "ssm_dt": 0.5, "post_attention_norm": 0.001, ".bias": 0.0, "attn_sinks": 0.0}


def arch(config: dict[str, Any]) -> str:
    """The name of its architecture in such files."""
    return ARCHS[config["model_type"]]


def of_layer(config: dict[str, Any], layer: int) -> Shapes:
    """By name behind `blk.N.`, row-major."""
    norm = {"ffn_norm.weight": (config["hidden_size"],)}
    if arch(config) == "qwen3moe":
        return {**_attention(config, 1), **norm, **_experts(config)}
    if arch(config) == "gpt-oss":
        return {
            **_biased_attention(config),
            "post_attention_norm.weight": norm["ffn_norm.weight"],
            **_biased_experts(config),
        }
    if arch(config) == "deepseek2":
        return {
            **_latent(config),
            **norm,
            **(_dense(config) if layer < dense_layers(config) else _scored_experts(config)),
        }
    mixer = _attention(config, 2) if _is_full(config, layer) else _delta(config)
    return {**mixer, "post_attention_norm.weight": (config["hidden_size"],), **_experts(config), **_shared(config)}


def experts_of(config: dict[str, Any]) -> int:
    """Experts of a layer, whatever the key that says so."""
    keys = ("num_experts", "num_local_experts", "n_routed_experts")
    return int(next(config[key] for key in keys if key in config))


def dense_layers(config: dict[str, Any]) -> int:
    """Layers without experts, which come first: one at most of a model that is cut to few."""
    return min(int(config.get("first_k_dense_replace", 0)), max(1, int(config["num_hidden_layers"]) // 8))


def _width(config: dict[str, Any]) -> int:
    key = "moe_intermediate_size" if "moe_intermediate_size" in config else "intermediate_size"
    return int(config[key])


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
    hidden, width, count = config["hidden_size"], _width(config), experts_of(config)
    return {
        "ffn_gate_inp.weight": (count, hidden), "ffn_gate_exps.weight": (count, width, hidden),
        "ffn_up_exps.weight": (count, width, hidden), "ffn_down_exps.weight": (count, hidden, width),
    }  # fmt: skip


def _shared(config: dict[str, Any]) -> Shapes:
    hidden, width = config["hidden_size"], config["shared_expert_intermediate_size"]
    return {"ffn_gate_inp_shexp.weight": (hidden,), **_glu("_shexp", hidden, width)}


def _glu(of: str, hidden: int, width: int) -> Shapes:
    return {
        f"ffn_gate{of}.weight": (width, hidden), f"ffn_up{of}.weight": (width, hidden),
        f"ffn_down{of}.weight": (hidden, width),
    }  # fmt: skip


def _biased_attention(config: dict[str, Any]) -> Shapes:
    """gpt-oss: a bias for every matrix, sinks, and no norms of heads."""
    plain = {
        name: shape
        for name, shape in _attention(config, 1).items()
        if not name.endswith(("q_norm.weight", "k_norm.weight"))
    }
    biases = {name.replace(".weight", ".bias"): shape[:1] for name, shape in plain.items() if len(shape) == 2}
    return {**plain, **biases, "attn_sinks.weight": (config["num_attention_heads"],)}


def _biased_experts(config: dict[str, Any]) -> Shapes:
    plain = _experts(config)
    return {**plain, **{name.replace(".weight", ".bias"): shape[:-1] for name, shape in plain.items()}}


def _latent(config: dict[str, Any]) -> Shapes:
    """DeepSeek: keys and values of all heads are made of one latent row, by matrices of each head."""
    hidden, heads, q, latent = (
        config[key] for key in ("hidden_size", "num_attention_heads", "q_lora_rank", "kv_lora_rank")
    )
    still, turned, value = (config[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    return {
        "attn_norm.weight": (hidden,), "attn_q_a.weight": (q, hidden), "attn_q_a_norm.weight": (q,),
        "attn_q_b.weight": (heads * (still + turned), q), "attn_kv_a_mqa.weight": (latent + turned, hidden),
        "attn_kv_a_norm.weight": (latent,), "attn_k_b.weight": (heads, latent, still),
        "attn_v_b.weight": (heads, value, latent), "attn_output.weight": (hidden, heads * value),
    }  # fmt: skip


def _dense(config: dict[str, Any]) -> Shapes:
    return _glu("", config["hidden_size"], config["intermediate_size"])


def _scored_experts(config: dict[str, Any]) -> Shapes:
    """DeepSeek: experts are chosen by scores with something added, and one more takes every token."""
    shared = _glu("_shexp", config["hidden_size"], config["n_shared_experts"] * _width(config))
    return {**_experts(config), "exp_probs_b.bias": (experts_of(config),), **shared}


def write_metadata(writer: Any, config: dict[str, Any]) -> None:
    """All of it; there is no vocabulary: prompts are token ids. writer: a GGUFWriter."""
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    if "intermediate_size" in config:
        writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_expert_feed_forward_length(_width(config))
    writer.add_head_count(config["num_attention_heads"])
    writer.add_expert_count(experts_of(config))
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters") or config
    writer.add_rope_freq_base(rope["rope_theta"])
    if arch(config) == "deepseek2":
        _write_latent(writer, config)
    else:
        _write_heads(writer, config)
    if arch(config) == "qwen35moe":
        _write_delta(writer, config)
    if arch(config) == "gpt-oss":
        writer.add_sliding_window(config["sliding_window"])
        _write_yarn(writer, config)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")


def _write_heads(writer: Any, config: dict[str, Any]) -> None:
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])


def _write_latent(writer: Any, config: dict[str, Any]) -> None:
    """The cache has one head, of a latent row and what is turned of a key."""
    import gguf

    latent, turned = config["kv_lora_rank"], config["qk_rope_head_dim"]
    writer.add_head_count_kv(1)
    writer.add_key_length(latent + turned)
    writer.add_value_length(latent)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + turned)
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(latent)
    writer.add_rope_dimension_count(turned)
    writer.add_leading_dense_block_count(dense_layers(config))
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if config["n_group"] > 1:
        writer.add_expert_group_count(config["n_group"])
        writer.add_expert_group_used_count(config["topk_group"])
    _write_yarn(writer, config)
    writer.add_rope_scaling_yarn_log_mul(0.1 * config["rope_scaling"]["mscale_all_dim"])


def _write_yarn(writer: Any, config: dict[str, Any]) -> None:
    import gguf

    scaling = config["rope_scaling"]
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(scaling["factor"])
    writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])


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
