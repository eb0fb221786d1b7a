"""What of files with other mixers than attention is compared: sizes that rows of blocks fit, and types by role."""

from __future__ import annotations

from typing import Any

import tiny
import warm_metadata

SPARSE, HEAVY = "compressed_sparse_attention", "heavily_compressed_attention"
# What files do not hold has the value that releases have.
AS_RELEASED: dict[str, dict[str, Any]] = {
    "gpt_oss": {"swiglu_limit": 7.0},
    "minimax_m3_vl_text": {"swiglu_limit": 7.0},
    "minimax_m3_vl_text-one": {"swiglu_limit": 7.0, "layer_types": ["minimax_m3_sparse"] * 3},
    "glm5_next-free": {"attention_bias": False},
    "qwen4_exp_text-one": {"norm_topk_prob": True},
    "deepseek_v4": {"compress_rates": {SPARSE: 4, HEAVY: 128}},
    "deepseek_v4-yarn": {"compress_rates": {SPARSE: 4, HEAVY: 128}},
    "lfm2_moe": {"routed_scaling_factor": 1.0},
    "phimoe": {"router_jitter_noise": 0.01, "rope_parameters": warm_metadata.longrope(tiny.LONGROPE)},
    "phimoe-plain": {"router_jitter_noise": 0.01},
    "llama4_text": {"floor_scale": 8192, "attn_scale": 0.1},
    "llama4_text-interleaved": {  # of so many experts a model has no norms of queries and keys
        "floor_scale": 8192,
        "attn_scale": 0.1,
        "no_rope_layers": [1, 1, 1, 0],
        "num_local_experts": 128,
    },
}
# As llama-quantize mixes them for these archs: sizes that change, and types by role.
MIXES: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "gpt-oss, experts as released": (
        "gpt_oss",
        {"hidden_size": 288, "head_dim": 32, "intermediate_size": 96},
        {
            "token_embd": "Q8_0", "output": "Q8_0", "attn_q": "Q5_0", "attn_k": "Q5_0", "attn_v": "Q8_0/Q5_0",
            "attn_output": "Q8_0", "ffn_gate_exps": "MXFP4", "ffn_up_exps": "MXFP4", "ffn_down_exps": "MXFP4",
        },
    ),
    "deepseek 4, experts as released": (
        "deepseek_v4",
        {"head_dim": 32, "q_lora_rank": 64, "o_lora_rank": 32, "moe_intermediate_size": 96,
         "compress_rates": {SPARSE: 4, HEAVY: 128}},
        {
            "token_embd": "Q8_0", "output": "Q8_0", "attn_q_a": "Q8_0", "attn_q_b": "Q8_0", "attn_kv": "Q8_0",
            "attn_output_a": "Q8_0", "attn_output_b": "Q8_0", "attn_compressor_kv": "Q5_0",
            "attn_compressor_gate": "Q5_0", "indexer_compressor_kv": "Q5_0", "indexer_compressor_gate": "Q5_0",
            "indexer.attn_q_b": "Q8_0", "indexer.proj": "Q5_0", "ffn_gate_exps": "MXFP4", "ffn_up_exps": "MXFP4",
            "ffn_down_exps": "MXFP4", "ffn_gate_shexp": "Q8_0", "ffn_up_shexp": "Q8_0", "ffn_down_shexp": "Q8_0",
        },
    ),
    "deepseek": (
        "deepseek_v3",
        {"hidden_size": 256, "q_lora_rank": 256, "kv_lora_rank": 256, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
         "v_head_dim": 64, "moe_intermediate_size": 256, "intermediate_size": 512, "num_hidden_layers": 4},
        {
            "token_embd": "Q4_K", "output": "Q6_K", "attn_q_a": "Q4_K", "attn_q_b": "Q4_K", "attn_kv_a_mqa": "Q4_K",
            "attn_k_b": "Q5_0/Q8_0", "attn_v_b": "Q6_K/Q4_K", "attn_output": "Q4_K", "ffn_gate": "Q4_K",
            "ffn_up": "Q4_K", "ffn_down": "Q6_K", "ffn_gate_exps": "Q4_K", "ffn_up_exps": "Q4_K",
            "ffn_down_exps": "Q6_K/Q4_K",
            "ffn_gate_shexp": "Q4_K", "ffn_up_shexp": "Q4_K", "ffn_down_shexp": "Q6_K/Q4_K",
        },
    ),
    "qwen3-next": (
        "qwen3_next",
        {"hidden_size": 256, "head_dim": 64, "moe_intermediate_size": 256, "shared_expert_intermediate_size": 512,
         "linear_key_head_dim": 32, "linear_value_head_dim": 64},
        {
            "token_embd": "Q4_K", "output": "Q6_K", "attn_q": "Q4_K", "attn_k": "Q4_K", "attn_v": "Q6_K",
            "attn_output": "Q4_K", "attn_qkv": "Q6_K/Q4_K", "attn_gate": "Q4_K", "ssm_ba": "Q4_K", "ssm_out": "Q4_K",
            "ffn_gate_exps": "Q4_K", "ffn_up_exps": "Q4_K", "ffn_down_exps": "Q6_K/Q4_K", "ffn_gate_shexp": "Q4_K",
            "ffn_up_shexp": "Q4_K", "ffn_down_shexp": "Q6_K",
        },
    ),
    "gemma 4": (
        "gemma4_text",
        {"hidden_size": 256, "head_dim": 64, "global_head_dim": 128, "moe_intermediate_size": 96,
         "intermediate_size": 256},
        {
            "token_embd": "Q6_K", "attn_q": "Q4_K", "attn_k": "Q4_K", "attn_v": "Q6_K", "attn_output": "Q4_K",
            "ffn_gate_up_exps": "Q4_K", "ffn_down_exps": "Q5_1/Q8_0", "ffn_gate": "Q4_K", "ffn_up": "Q4_K",
            "ffn_down": "Q6_K",
        },
    ),
    "qwen3.6, a dynamic mix": (
        "qwen3_5_moe_text",
        {"hidden_size": 256, "head_dim": 64, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 256,
         "linear_key_head_dim": 32, "linear_value_head_dim": 64, "linear_num_value_heads": 8},
        {
            "token_embd": "Q5_K", "output": "Q6_K", "attn_q": "Q5_K", "attn_k": "Q8_0", "attn_v": "Q8_0",
            "attn_output": "IQ4_XS", "attn_qkv": "Q5_K/IQ4_XS", "attn_gate": "Q6_K", "ssm_alpha": "Q8_0/F32",
            "ssm_beta": "F32/Q8_0", "ssm_out": "Q5_K/Q8_0", "ffn_gate_exps": "Q3_K/Q4_K", "ffn_up_exps": "Q4_K/Q3_K",
            "ffn_down_exps": "Q5_K", "ffn_gate_shexp": "Q8_0", "ffn_up_shexp": "Q8_0", "ffn_down_shexp": "Q8_0",
        },
    ),
    "minimax m3": (
        "minimax_m3_vl_text",
        {"hidden_size": 256, "head_dim": 64, "rotary_dim": 32, "intermediate_size": 256,
         "dense_intermediate_size": 512, "shared_intermediate_size": 256, "index_head_dim": 32},
        {
            "token_embd": "Q4_K", "output": "Q6_K", "attn_q": "Q4_K", "attn_k": "Q4_K", "attn_v": "Q6_K",
            "attn_output": "Q5_K", "ffn_gate": "Q4_K", "ffn_up": "Q4_K", "ffn_down": "Q6_K", "ffn_gate_exps": "Q4_K",
            "ffn_up_exps": "Q4_K", "ffn_down_exps": "Q6_K/Q4_K", "ffn_gate_shexp": "Q4_K", "ffn_up_shexp": "Q4_K",
            "ffn_down_shexp": "Q6_K",
        },
    ),
    "glm 5.3": (
        "glm5_next",
        {"hidden_size": 256, "q_lora_rank": 256, "kv_lora_rank": 256, "qk_nope_head_dim": 32, "v_head_dim": 64,
         "moe_intermediate_size": 256, "intermediate_size": 512, "linear_head_dim": 32, "linear_num_heads": 8},
        {
            "token_embd": "Q4_K", "output": "Q6_K", "attn_q": "Q4_K", "attn_k": "Q4_K", "attn_v": "Q4_K",
            "attn_q_a": "Q4_K", "attn_q_b": "Q4_K", "attn_kv_a_mqa": "Q4_K", "attn_k_b": "Q5_0/Q8_0",
            "attn_v_b": "Q6_K/Q4_K", "attn_output": "Q4_K", "ssm_f_a": "Q8_0", "ssm_f_b": "Q8_0", "ssm_g_a": "Q4_K",
            "ssm_g_b": "Q5_0", "ffn_gate": "Q4_K", "ffn_up": "Q4_K", "ffn_down": "Q6_K",
            "ffn_gate_exps": "Q4_K", "ffn_up_exps": "Q4_K", "ffn_down_exps": "Q6_K/Q4_K", "ffn_gate_shexp": "Q4_K",
            "ffn_up_shexp": "Q4_K", "ffn_down_shexp": "Q6_K",
        },
    ),
    "qwen3.8 flash": (
        "qwen4_exp_text-one",
        {"hidden_size": 256, "head_dim": 64, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 256,
         "linear_key_head_dim": 32, "linear_value_head_dim": 64, "ple_embed_dim": 128,
         "indexer_head_dim": 40},
        {
            "token_embd": "Q4_K", "output": "Q6_K", "per_layer_token_embd": "Q5_0", "ple_key": "Q8_0",
            "ple_value": "Q5_0", "attn_q": "Q4_K", "attn_k": "Q4_K", "attn_v": "Q6_K", "attn_output": "Q4_K",
            "attn_qkv": "Q6_K/Q4_K", "attn_gate": "Q4_K", "ssm_out": "Q4_K", "ffn_gate_exps": "Q4_K",
            "ffn_up_exps": "Q4_K", "ffn_down_exps": "Q6_K/Q4_K", "ffn_gate_shexp": "Q4_K", "ffn_up_shexp": "Q4_K",
            "ffn_down_shexp": "Q6_K",
        },
    ),
    "lfm2": (
        "lfm2_moe",
        {"hidden_size": 256, "moe_intermediate_size": 256, "intermediate_size": 512},
        {
            "token_embd": "Q6_K", "in_proj": "Q4_K/Q5_K", "out_proj": "Q4_K", "attn_q": "Q4_K", "attn_k": "Q4_K",
            "attn_v": "Q6_K", "attn_output": "Q4_K", "ffn_gate": "Q4_K", "ffn_up": "Q4_K", "ffn_down": "Q6_K",
            "ffn_gate_exps": "Q4_K", "ffn_up_exps": "Q4_K", "ffn_down_exps": "Q6_K/Q4_K",
        },
    ),
    "granite 4 h": (
        "granitemoehybrid",
        {"hidden_size": 256, "mamba_d_head": 64, "intermediate_size": 256, "shared_intermediate_size": 512},
        {
            "token_embd": "Q6_K", "ssm_in": "Q4_K/Q5_K", "ssm_out": "Q5_K/Q8_0", "attn_q": "Q4_K", "attn_k": "Q4_K",
            "attn_v": "Q6_K", "attn_output": "Q4_K", "ffn_gate_exps": "Q4_K", "ffn_up_exps": "Q4_K",
            "ffn_down_exps": "Q6_K", "ffn_gate_shexp": "Q4_K", "ffn_up_shexp": "Q4_K", "ffn_down_shexp": "Q6_K",
        },
    ),
    "nemotron 3": (
        "nemotron_h",
        {"hidden_size": 256, "head_dim": 64, "mamba_head_dim": 64, "moe_intermediate_size": 512,
         "moe_shared_expert_intermediate_size": 256},
        {
            "token_embd": "Q4_K", "output": "Q6_K", "ssm_in": "Q5_0/Q8_0", "ssm_out": "Q8_0", "attn_q": "Q4_K",
            "attn_k": "Q4_K", "attn_v": "Q6_K", "attn_output": "Q5_K", "ffn_up_exps": "Q4_K/Q3_K",
            "ffn_down_exps": "Q6_K", "ffn_up_shexp": "Q8_0", "ffn_down_shexp": "Q8_0",
        },
    ),
}  # fmt: skip
