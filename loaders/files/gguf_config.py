"""From the metadata of a GGUF file to the keys of a config.json, so that one reader a family serves both.

The arch names what converters write; a value that the metadata does not have is read off the tensors' shapes. Only what
decides on sizes is carried over.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ...errors import ConfigError
from .headers import Stored

ARCHS = {
    "bailingmoe3": "bailing_hybrid", "deepseek2": "deepseek_v3", "deepseek32": "deepseek_v32", "dots1": "dots1",
    "ernie4_5-moe": "ernie4_5_moe", "glm-dsa": "glm_moe_dsa", "glm4moe": "glm4_moe", "gpt-oss": "gpt_oss",
    "granitehybrid": "granitemoehybrid", "granitemoe": "granitemoe", "hunyuan-moe": "hunyuan_v1_moe", "hy_v3": "hy_v3",
    "kimi-linear": "kimi_linear", "lfm2moe": "lfm2_moe", "llama": "mixtral", "llama4": "llama4",
    "minimax-m2": "minimax_m2", "mistral4": "mistral4", "olmoe": "olmoe", "phimoe": "phimoe", "qwen2moe": "qwen2_moe",
    "qwen35moe": "qwen3_5_moe", "qwen3moe": "qwen3_moe", "qwen3next": "qwen3_next",
}  # fmt: skip
# GGUF key (behind the arch) -> config key.
KEYS = {
    "block_count": "num_hidden_layers", "context_length": "max_position_embeddings", "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size", "vocab_size": "vocab_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window", "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank", "attention.value_length_mla": "v_head_dim",
    "attention.indexer.head_count": "index_n_heads", "attention.indexer.key_length": "index_head_dim",
    "attention.indexer.top_k": "index_topk", "rope.freq_base": "rope_theta", "rope.dimension_count": "rotary_dim",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_shared_count": "n_shared_experts", "leading_dense_block_count": "first_k_dense_replace",
    "full_attention_interval": "full_attention_interval", "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.state_size": "linear_key_head_dim", "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads", "interleave_moe_layer_step": "interleave_moe_layer_step",
    "expert_used_count": "num_experts_per_tok", "expert_count": "num_experts",
}  # fmt: skip
COUNTS = ("n_routed_experts", "num_local_experts", "moe_num_experts")
WIDE = ("mixtral", "gpt_oss", "minimax_m2", "olmoe", "granitemoe", "granitemoehybrid", "phimoe", "hunyuan_v1_moe")
LATENT = ("deepseek_v3", "deepseek_v32", "glm_moe_dsa", "mistral4", "kimi_linear", "bailing_hybrid")


def config(metadata: Mapping[str, Any], tensors: tuple[Stored, ...], source: str) -> dict[str, Any]:
    """The keys of a config.json; raises ConfigError for an arch that is not known."""
    arch = metadata.get("general.architecture")
    if arch not in ARCHS:
        near = difflib.get_close_matches(str(arch), ARCHS, n=3, cutoff=0.5)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise ConfigError(
            f"{source}: a GGUF of architecture '{arch}' cannot be planned{hint}. Give the config.json of the model "
            "with --quant instead"
        )
    values: dict[str, Any] = {"model_type": ARCHS[arch]}
    for key, name in KEYS.items():
        if (value := metadata.get(f"{arch}.{key}")) is not None:
            values[name] = value
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    values.setdefault("vocab_size", shapes.get("token_embd.weight", (0,))[0])
    values["tie_word_embeddings"] = "output.weight" not in shapes
    values["num_hidden_layers"] = values.get("num_hidden_layers", 0) - metadata.get(f"{arch}.nextn_predict_layers", 0)
    _experts(values, shapes)
    _attention(values, shapes, metadata, arch)
    if inner := metadata.get(f"{arch}.ssm.inner_size"):
        values["linear_value_head_dim"] = inner // values.get("linear_num_value_heads", 1)
    return _defaults(values)


def _experts(values: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    count, family = values.get("num_experts"), values["model_type"]
    values.update(dict.fromkeys(COUNTS, count))
    width = next((s[-2] for name, s in shapes.items() if name.endswith("ffn_gate_exps.weight")), None)
    if width is not None:
        values["moe_intermediate_size"] = width
        if family in WIDE:
            values["intermediate_size"] = width
    values.update(dict.fromkeys(("moe_k", "moe_topk", "num_experts_per_token"), values.get("num_experts_per_tok")))
    shared = next((s[-2] for name, s in shapes.items() if name.endswith("ffn_gate_shexp.weight")), 0)
    if shared:
        values["shared_expert_intermediate_size"] = values["shared_intermediate_size"] = shared
        one = values.get("moe_intermediate_size") or shared
        values["n_shared_experts"] = values["moe_num_shared_experts"] = values["num_shared_expert"] = shared // one
    dense = [i for i in range(values["num_hidden_layers"]) if f"blk.{i}.ffn_gate_exps.weight" not in shapes]
    values["first_k_dense_replace"] = values["moe_layer_start_index"] = values["num_dense_layers"] = len(dense)
    values["decoder_sparse_step"], values["mlp_only_layers"] = 1, dense


def _attention(
    values: dict[str, Any], shapes: dict[str, tuple[int, ...]], metadata: Mapping[str, Any], arch: str
) -> None:
    heads = values.get("num_key_value_heads")
    if isinstance(heads, list):  # one a layer: 0 where a layer does not attend
        values["layer_types"] = ["full_attention" if n else "linear_attention" for n in heads]
        values["num_key_value_heads"] = max(heads)
    has = {
        name.removeprefix("blk.0.").removeprefix("blk.3.") for name in shapes if name.startswith(("blk.0.", "blk.3."))
    }
    values["attention_bias"] = values["qkv_bias"] = "attn_q.bias" in has
    values["use_qk_norm"] = "attn_q_norm.weight" in has
    if values["model_type"] not in LATENT:
        return
    rope = values.pop("rotary_dim", 0)
    values["qk_rope_head_dim"] = rope
    values["qk_nope_head_dim"] = metadata.get(f"{arch}.attention.key_length_mla", 0) - rope
    values.pop("head_dim", None)
    values.pop("num_key_value_heads", None)


def _defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Settings that change no size, at the value that lets a family's own reader pass."""
    family = values["model_type"]
    values["norm_topk_prob"] = family not in ("qwen2_moe", "olmoe")
    values["hidden_act"] = "silu"
    values.setdefault("rope_theta", 10000.0)
    if family == "mixtral":
        values.pop("sliding_window", None)
    if family == "granitemoe":
        values.update(embedding_multiplier=1.0, residual_multiplier=1.0, attention_multiplier=1.0, logits_scaling=1.0)
    return {key: value for key, value in values.items() if value is not None}
