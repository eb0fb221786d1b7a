"""The metadata that llama.cpp's converter writes for gpt-oss, DeepSeek, Qwen3-Next and Qwen3.5."""

from __future__ import annotations

from typing import Any

import biased_metadata
import compressed_files
import gguf
import kind_metadata
import newest_files
import recurrent_files
import warm_metadata

SCORING = {"sigmoid": gguf.ExpertGatingFuncType.SIGMOID, "softmax": gguf.ExpertGatingFuncType.SOFTMAX}
# How families score whose configs, as transformers writes them, do not say it; released ones of the first two do.
SCORED = {
    "deepseek_v3": "sigmoid", "kimi_k2": "sigmoid", "deepseek_v2": "softmax", "deepseek_v32": "sigmoid",
    "glm_moe_dsa": "sigmoid", "kimi_linear": "sigmoid", "glm5_next_text": "sigmoid",
    "kimi_k3": "sigmoid",
}  # fmt: skip
LATENT = ("deepseek2", "deepseek32", "glm-dsa", "kimi-linear")


def kind(value: Any) -> gguf.GGUFValueType:
    """The type of a value; whole numbers are unsigned, as llama.cpp wants them."""
    found = gguf.GGUFValueType.get_type(value)
    return gguf.GGUFValueType.UINT32 if found is gguf.GGUFValueType.INT32 else found


def add(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any], older: bool) -> None:
    """All of them but the tokenizer's. older: of a file with joined up-projections of latents."""
    if arch in biased_metadata.ARCHS.values():
        biased_metadata.add(writer, arch, config)
        return
    if arch in kind_metadata.ARCHS.values():
        kind_metadata.add(writer, arch, config)
        return
    if arch in recurrent_files.ARCHS.values():
        recurrent_files.add_metadata(writer, arch, config)
        return
    if arch in compressed_files.ARCHS.values():
        compressed_files.add_metadata(writer, arch, config)
        return
    if arch == "gemma4":
        _gemma4(writer, config)
        return
    if arch in ("llama4", "phimoe"):
        warm_metadata.add(writer, arch, config)
        return
    _common(writer, config)
    if arch in ("minimax-m3", "hy_v3"):
        newest_files.add_metadata(writer, arch, config)
        return
    _rope(writer, config.get("rope_parameters") or {"rope_theta": 10000.0})
    if arch == "gpt-oss":
        writer.add_sliding_window(config["sliding_window"])
        writer.add_expert_feed_forward_length(config["intermediate_size"])
    elif arch in ("glm5-next", "kimi-k3"):
        _latent(writer, config, older)
        newest_files.add_metadata(writer, arch, config)
    elif arch in (*LATENT, "mistral4"):
        _latent(writer, config, older)
        if "index_topk" in config:
            writer.add_indexer_head_count(config["index_n_heads"])
            writer.add_indexer_key_length(config["index_head_dim"])
            writer.add_indexer_top_k(config["index_topk"])
        if arch == "mistral4":
            warm_metadata.add_temperature(writer, config)
        if arch == "kimi-linear":
            writer.add_kda_head_dim(config["linear_head_dim"])
            writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
    else:
        _delta(writer, arch, config)
        if arch == "qwen4exp":
            newest_files.add_metadata(writer, arch, config)


def _common(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config.get("max_position_embeddings") or config["model_max_length"])
    writer.add_embedding_length(config["hidden_size"])
    if "intermediate_size" in config:
        writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    counts = ("num_local_experts", "num_experts", "n_routed_experts")
    writer.add_expert_count(next(config[key] for key in counts if config.get(key)))
    used = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts")
    writer.add_expert_used_count(next(config[key] for key in used if config.get(key)))
    if (groups := config.get("n_group") or config.get("num_expert_group")) is not None:
        writer.add_expert_group_count(groups)
        writer.add_expert_group_used_count(config["topk_group"])
    if scoring := config.get("scoring_func") or SCORED.get(config["model_type"]):
        writer.add_expert_gating_func(SCORING[scoring])
    if "kv_lora_rank" not in config:
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])


def full_size(config: dict[str, Any]) -> int:
    """The size of a head that sees everything; transformers saves it as an entry of each such layer."""
    return int(_of_full(config).get("head_dim") or config["global_head_dim"])


def _of_full(config: dict[str, Any]) -> dict[str, Any]:
    full = config["layer_types"].index("full_attention")
    own: dict[str, Any] = (config.get("per_layer_config") or {}).get(str(full), {})
    return own


def _gemma4(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    slides = [kind == "sliding_attention" for kind in config["layer_types"]]
    groups, of_full = config["num_key_value_heads"], _of_full(config).get("num_key_value_heads")
    _common(writer, {**config, "kv_lora_rank": None})
    writer.add_head_count_kv([groups if one or not of_full else of_full for one in slides])
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(full_size(config))
    for add in (writer.add_key_length_swa, writer.add_value_length_swa, writer.add_rope_dimension_count_swa):
        add(config["head_dim"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_sliding_window_pattern(config.get("windows", slides))
    writer.add_rope_freq_base(config["rope_parameters"]["full_attention"]["rope_theta"])
    writer.add_rope_freq_base_swa(config["rope_parameters"]["sliding_attention"]["rope_theta"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_embedding_length_per_layer_input(config["hidden_size_per_layer_input"])
    writer.add_shared_kv_layers(config["num_kv_shared_layers"])
    if cap := config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(cap)


def _rope(writer: gguf.GGUFWriter, rope: dict[str, Any]) -> None:
    writer.add_rope_freq_base(rope["rope_theta"])
    if sections := rope.get("mrope_section"):
        writer.add_rope_dimension_sections([*sections, 0])
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if "beta_fast" in rope:
            writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        if "beta_slow" in rope:
            writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])


def _latent(writer: gguf.GGUFWriter, config: dict[str, Any], older: bool) -> None:
    rank, turned = config["kv_lora_rank"], config["qk_rope_head_dim"]
    is_kimi = config["model_type"].startswith("kimi_")
    key, value = config["qk_nope_head_dim"] + turned, config["v_head_dim"]
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_vocab_size(config["vocab_size"])
    if config.get("q_lora_rank"):
        writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(rank)
    writer.add_head_count_kv(config["num_attention_heads"] if older else 1)
    writer.add_key_length(key if older else rank + turned)
    writer.add_value_length(value if older else rank)
    if not older:
        writer.add_key_length_mla(key)
        writer.add_value_length_mla(value)
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_count(config.get("n_shared_experts") or config["num_shared_experts"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    if (said := config.get("norm_topk_prob", config.get("moe_renormalize"))) is not None and (said or is_kimi):
        writer.add_expert_weights_norm(said)
    writer.add_rope_dimension_count(turned)
    if m := (config.get("rope_parameters") or {}).get("mscale_all_dim"):
        writer.add_rope_scaling_yarn_log_mul(0.1 * m)


def _delta(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any]) -> None:
    rope, v_heads = config["rope_parameters"], config["linear_num_value_heads"]
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
    writer.add_ssm_state_size(config["linear_key_head_dim"])
    writer.add_ssm_group_count(config["linear_num_key_heads"])
    writer.add_ssm_time_step_rank(v_heads)
    writer.add_ssm_inner_size(config["linear_value_head_dim"] * v_heads)
    writer.add_array(f"{arch}.attention.recurrent_layers", [one == "linear_attention" for one in config["layer_types"]])
    writer.add_full_attention_interval(config.get("full_attention_interval", 4))
    writer.add_rope_dimension_count(int(config["head_dim"] * rope.get("partial_rotary_factor", 0.25)))
    if arch in ("qwen35moe", "qwen4exp") and "mrope_section" not in rope:
        writer.add_rope_dimension_sections([11, 11, 10, 0])
