"""Tiny random checkpoints of every family, built and saved by transformers, which is then the oracle.

Every dimension differs from every other that it could be mistaken for, and what transformers initialises to zero or one
is randomised, so that a transposed matrix or a forgotten bias cannot pass.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import safetensors.torch
import tiny_wrapped
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.mistral4.modeling_mistral4 import Mistral4ForCausalLM
from transformers.models.step3p7.configuration_step3p7 import Step3p7TextConfig
from transformers.models.step3p7.modeling_step3p7 import Step3p7TextModel

BASE: dict[str, Any] = dict(
    vocab_size=160, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
HALF = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "rope_theta": 500000.0,
}  # fmt: skip
LATENT: dict[str, Any] = dict(
    BASE, num_key_value_heads=4, q_lora_rank=40, kv_lora_rank=36, qk_nope_head_dim=20, qk_rope_head_dim=8,
    v_head_dim=28, moe_intermediate_size=44, intermediate_size=96, first_k_dense_replace=1,
)  # fmt: skip
# Keys are chosen where a context has more than 24 tokens; of few heads keys with no product above 0 would be equal.
INDEXED: dict[str, Any] = dict(
    LATENT, index_topk=24, index_head_dim=12, index_n_heads=14, num_experts_per_tok=3, routed_scaling_factor=2.5,
    norm_topk_prob=True,
)  # fmt: skip
# Blocks of 32 keys: few are seen from 64, or 32 tokens on.
BLOCKS: dict[str, Any] = {
    **BASE, "head_dim": 24, "intermediate_size": 40, "dense_intermediate_size": 96, "shared_intermediate_size": 48,
    "num_experts_per_tok": 3, "rotary_dim": 12, "index_n_heads": 2, "index_head_dim": 16, "index_block_size": 32,
    "swiglu_limit": 0.7, "rope_parameters": HALF,
}  # fmt: skip
# Runs of 4 keys: 24 and those behind them are seen.
RUNS: dict[str, Any] = {
    **INDEXED, "qk_rope_head_dim": 0, "index_kpool": 4, "linear_head_dim": 20, "linear_num_heads": 3,
    "linear_conv_kernel_dim": 3,
}  # fmt: skip
# A window of 13 tokens; of entries that an indexer chooses, 6 are seen.
ENTRIES: dict[str, Any] = {
    **BASE,
    "num_hidden_layers": 4,
    "num_key_value_heads": 1,
    "head_dim": 28,
    "qk_rope_head_dim": 12,
    "q_lora_rank": 40,
    "o_groups": 2,
    "o_lora_rank": 18,
    "index_n_heads": 15,
    "index_head_dim": 20,
    "index_topk": 6,
    "sliding_window": 13,
    "moe_intermediate_size": 44,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "swiglu_limit": 0.8,
    "hc_mult": 3,
    "hc_sinkhorn_iters": 4,
}
STILL: dict[str, Any] = {
    **{name: value for name, value in INDEXED.items() if name not in ("q_lora_rank", "norm_topk_prob")},
    "rope_parameters": {**YARN, "attention_factor": 1.0},
}  # fmt: skip
KIMI: dict[str, Any] = {
    **{name: value for name, value in LATENT.items() if name != "max_position_embeddings"}, "q_lora_rank": None,
    "num_hidden_layers": 5, "model_max_length": 256, "num_experts_per_token": 3, "routed_scaling_factor": 2.4,
}  # fmt: skip
DELTA: dict[str, Any] = dict(
    BASE, num_hidden_layers=4, head_dim=32, moe_intermediate_size=40, shared_expert_intermediate_size=48, num_experts=8,
    num_experts_per_tok=3, linear_key_head_dim=16, linear_value_head_dim=24, linear_num_key_heads=2,
    linear_num_value_heads=4,
)  # fmt: skip
GRAMS: dict[str, Any] = {
    **{name: value for name, value in DELTA.items() if name != "num_hidden_layers"},
    "rope_parameters": HALF, "ple_embed_dim": 48, "ple_conv_kernel_size": 4, "ngram_size": 3, "heads_per_ngram": 2,
    "ngram_vocab_size_base": 40, "make_ngram_vocab_size_divisible_by": 16, "seed": 77, "split_ngram_parts": 4,
    "indexer_n_heads": 12, "indexer_kv_heads": 1, "indexer_head_dim": 20, "indexer_budget": 24,
    "indexer_compress_ratio": 4,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 256, "short_mscale": 1.1,
    "long_mscale": 1.3, "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [1.5 + 0.7 * i for i in range(8)],
}  # fmt: skip
ALPHA = {"rope_type": "dynamic", "type": "dynamic", "alpha": 1000.0, "factor": 1.0, "rope_theta": 10000.0}
# Some dense layers, then experts whose choice is biased, beside a shared one.
BIASED: dict[str, Any] = dict(
    BASE, head_dim=24, intermediate_size=96, moe_intermediate_size=40, num_experts_per_tok=3, norm_topk_prob=True,
)  # fmt: skip
TWO_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
}  # fmt: skip
KINDS = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
SPARSE = ["dense", "sparse", "sparse", "sparse"]
PART_TURNED = {
    "full_attention": {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.334},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.334},
}  # fmt: skip

SPACE: dict[str, Any] = dict(
    BASE, num_hidden_layers=4, intermediate_size=40, num_local_experts=7, num_experts_per_tok=3,
    shared_intermediate_size=48, mamba_n_heads=8, mamba_d_head=16, mamba_d_state=12, mamba_d_conv=4, mamba_expand=2,
    mamba_chunk_size=16, embedding_multiplier=3.0, residual_multiplier=0.7, attention_multiplier=0.21,
    logits_scaling=1.9, layer_types=["linear_attention", "full_attention", "linear_attention", "linear_attention"],
)  # fmt: skip
NEMOTRON: dict[str, Any] = dict(
    BASE, head_dim=24, intermediate_size=96, moe_intermediate_size=40, moe_shared_expert_intermediate_size=56,
    n_routed_experts=9, num_experts_per_tok=3, ssm_state_size=12, mamba_num_heads=8, mamba_head_dim=20, conv_kernel=4,
    chunk_size=16, norm_topk_prob=True,
)  # fmt: skip

VARIANTS: dict[str, dict[str, Any]] = {
    "qwen3_moe": dict(
        BASE, head_dim=24, intermediate_size=96, moe_intermediate_size=32, num_experts=8, num_experts_per_tok=3,
        norm_topk_prob=True, mlp_only_layers=[1],
    ),
    "qwen3_moe-yarn": dict(
        BASE, head_dim=32, intermediate_size=96, moe_intermediate_size=40, num_experts=7, num_experts_per_tok=2,
        norm_topk_prob=False, decoder_sparse_step=2, rope_parameters=YARN, attention_bias=True,
    ),
    "qwen2_moe": dict(
        BASE, intermediate_size=96, moe_intermediate_size=48, shared_expert_intermediate_size=80, num_experts=6,
        num_experts_per_tok=4, norm_topk_prob=False, mlp_only_layers=[0],
    ),
    "mixtral": dict(BASE, intermediate_size=112, num_local_experts=5, num_experts_per_tok=2, rope_theta=1e6),
    "mixtral-llama3": dict(
        BASE, intermediate_size=112, num_local_experts=5, num_experts_per_tok=2, head_dim=32, rope_parameters=LLAMA3
    ),
    "olmoe": dict(BASE, intermediate_size=40, num_experts=9, num_experts_per_tok=3, norm_topk_prob=False, clip_qkv=1.5),
    "olmoe-linear": dict(
        BASE, intermediate_size=40, num_experts=9, num_experts_per_tok=3, norm_topk_prob=True, rope_parameters=LINEAR
    ),
    "granitemoe": dict(
        BASE, intermediate_size=40, num_local_experts=6, num_experts_per_tok=3, embedding_multiplier=3.0,
        residual_multiplier=0.7, attention_multiplier=0.21, logits_scaling=1.9, tie_word_embeddings=True,
    ),
    "granitemoe-bias": dict(
        BASE, intermediate_size=40, num_local_experts=6, num_experts_per_tok=3, embedding_multiplier=2.0,
        residual_multiplier=0.9, attention_multiplier=0.3, logits_scaling=1.3, tie_word_embeddings=False,
        attention_bias=True,
    ),
    "gpt_oss": dict(
        BASE, head_dim=24, intermediate_size=40, num_local_experts=6, num_experts_per_tok=3, sliding_window=8,
        num_hidden_layers=4, swiglu_limit=1.5,
        rope_parameters={**YARN, "truncate": False, "beta_fast": 32.0, "beta_slow": 1.0},
    ),
    "deepseek_v2": dict(
        LATENT, q_lora_rank=None, n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=2,
        routed_scaling_factor=1.7, topk_method="greedy", n_group=1, topk_group=1, norm_topk_prob=False,
        rope_theta=10000.0,
    ),
    "deepseek_v2-groups": dict(
        LATENT, n_routed_experts=12, num_experts_per_tok=3, n_shared_experts=1, routed_scaling_factor=2.1,
        topk_method="group_limited_greedy", n_group=4, topk_group=2, norm_topk_prob=False,
        rope_parameters={**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    ),
    "deepseek_v3": dict(
        LATENT, n_routed_experts=16, num_experts_per_tok=4, n_shared_experts=1, routed_scaling_factor=2.5, n_group=4,
        topk_group=2, norm_topk_prob=True, rope_parameters={**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    ),
    "deepseek_v3-bias": dict(
        LATENT, n_routed_experts=9, num_experts_per_tok=2, n_shared_experts=1, routed_scaling_factor=1.3, n_group=1,
        topk_group=1, norm_topk_prob=True, attention_bias=True, rope_theta=50000.0, rms_norm_eps=1e-5,
    ),
    "glm4_moe_lite": dict(
        LATENT, n_routed_experts=10, num_experts_per_tok=3, n_shared_experts=1, routed_scaling_factor=1.8, n_group=1,
        topk_group=1, norm_topk_prob=True, rope_theta=1e6, rms_norm_eps=1e-5,
    ),
    "deepseek_v32": dict(
        INDEXED, n_routed_experts=16, n_shared_experts=1, n_group=4, topk_group=2,
        rope_parameters={**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    ),
    "glm_moe_dsa": dict(
        INDEXED, n_routed_experts=10, n_shared_experts=2, n_group=1, topk_group=1, rms_norm_eps=1e-5, rope_theta=1e6,
        num_hidden_layers=5, indexer_types=["full", "shared", "full", "shared", "shared"],
    ),
    "glm_moe_dsa-whole": dict(
        INDEXED, n_routed_experts=9, n_shared_experts=1, n_group=1, topk_group=1, rms_norm_eps=1e-5, rope_theta=1e6,
        index_topk=200, index_head_dim=8,
    ),
    "kimi_linear": dict(
        KIMI, num_experts=10, num_shared_experts=1, num_expert_group=1, topk_group=1, moe_renormalize=True,
        linear_attn_config={
            "full_attn_layers": [3, 5], "kda_layers": [1, 2, 4], "head_dim": 20, "num_heads": 3,
            "short_conv_kernel_size": 4,
        },
    ),
    "kimi_linear-groups": dict(
        KIMI, num_experts=12, num_shared_experts=2, num_expert_group=3, topk_group=2, moe_renormalize=False,
        linear_head_dim=24, linear_num_heads=5, linear_conv_kernel_dim=3,
        layer_types=["full_attention", "linear_attention", "linear_attention", "full_attention", "linear_attention"],
        mlp_layer_types=["sparse"] * 5, first_k_dense_replace=0,
    ),
    "bailing_hybrid": dict(
        {name: value for name, value in KIMI.items() if name != "q_lora_rank"}, num_experts=12, num_shared_experts=1,
        moe_renormalize=True, num_expert_group=3, topk_group=2, num_hidden_layers=4, head_dim=20, layer_group_size=2,
        short_conv_kernel_size=3, kda_lower_bound=-3.0, num_nextn_predict_layers=0, rope_theta=10000.0,
    ),
    "qwen3_next": dict(DELTA, intermediate_size=96, norm_topk_prob=True),
    "qwen3_next-dense": dict(DELTA, intermediate_size=96, norm_topk_prob=False, mlp_only_layers=[1], rope_theta=1e6),
    "qwen3_5_moe_text": dict(DELTA),
    "glm4_moe": dict(
        BIASED, n_routed_experts=10, n_shared_experts=1, first_k_dense_replace=1, routed_scaling_factor=2.5,
        use_qk_norm=True, attention_bias=True, num_mtp_layers=1, rope_parameters=HALF,
    ),
    "glm4_moe-air": dict(
        BIASED, n_routed_experts=12, n_shared_experts=2, first_k_dense_replace=2, routed_scaling_factor=1.0,
        use_qk_norm=False, attention_bias=True, num_mtp_layers=0, n_group=3, topk_group=2, rope_parameters=HALF,
    ),
    "minimax_m2": dict(
        BASE, head_dim=24, rotary_dim=16, intermediate_size=40, num_local_experts=9, num_experts_per_tok=3,
        rope_theta=10000.0,
    ),
    "dots1": dict(
        BIASED, n_routed_experts=10, n_shared_experts=2, first_k_dense_replace=1, routed_scaling_factor=2.5,
        sliding_window=None, n_group=1, topk_group=1, rope_theta=10000.0,
    ),
    "dots1-bias": dict(
        BIASED, n_routed_experts=9, n_shared_experts=1, first_k_dense_replace=0, routed_scaling_factor=1.3,
        sliding_window=None, n_group=3, topk_group=2, attention_bias=True, rope_theta=10000.0,
    ),
    "solar_open": dict(
        BIASED, n_routed_experts=10, n_shared_experts=1, routed_scaling_factor=1.7, rope_theta=10000.0
    ),
    "solar_open-bias": dict(
        BIASED, n_routed_experts=9, n_shared_experts=2, routed_scaling_factor=1.0, n_group=3, topk_group=2,
        attention_bias=True, rope_parameters=YARN,
    ),
    "hy_v3": dict(
        BIASED, num_experts=10, num_shared_experts=1, router_scaling_factor=2.8, rope_theta=10000.0,
        mlp_layer_types=["dense", "sparse", "sparse"],
    ),
    "ernie4_5_moe": dict(
        BASE, head_dim=24, intermediate_size=96, moe_intermediate_size=40, moe_num_experts=9, moe_k=3,
        moe_num_shared_experts=2, moe_layer_start_index=1, tie_word_embeddings=True, rope_theta=10000.0,
    ),
    "ernie4_5_moe-alone": dict(
        BASE, intermediate_size=96, moe_intermediate_size=40, moe_num_experts=8, moe_k=3, moe_num_shared_experts=0,
        moe_layer_start_index=1, moe_layer_end_index=3, moe_layer_interval=2, num_hidden_layers=5,
        tie_word_embeddings=False, rope_theta=10000.0,
    ),
    "granitemoeshared": dict(
        BASE, intermediate_size=40, num_local_experts=6, num_experts_per_tok=3, embedding_multiplier=3.0,
        residual_multiplier=0.7, attention_multiplier=0.21, logits_scaling=1.9, tie_word_embeddings=True,
        shared_intermediate_size=48,
    ),
    "exaone_moe": dict(
        BIASED, num_experts=10, num_shared_experts=1, first_k_dense_replace=1, routed_scaling_factor=2.5,
        num_hidden_layers=4, sliding_window=8, sliding_window_pattern=4, rope_theta=10000.0,
    ),
    "hunyuan_v1_moe": dict(
        BASE, head_dim=24, intermediate_size=40, num_experts=8, moe_topk=3, tie_word_embeddings=True,
        rope_parameters=ALPHA,
    ),
    "gemma4_text": dict(
        BASE, num_hidden_layers=4, head_dim=24, global_head_dim=40, num_global_key_value_heads=1, enable_moe_block=True,
        num_experts=8, top_k_experts=3, attention_k_eq_v=True, sliding_window=8, hidden_size_per_layer_input=0,
        intermediate_size=96, moe_intermediate_size=44, final_logit_softcapping=3.0,
        layer_types=["sliding_attention", "full_attention"] * 2, rope_parameters=TWO_ROPES,
    ),
    "gemma4_text-values": dict(
        BASE, num_hidden_layers=3, head_dim=32, global_head_dim=48, enable_moe_block=True, num_experts=7,
        top_k_experts=2, attention_k_eq_v=False, sliding_window=5, hidden_size_per_layer_input=0, intermediate_size=80,
        moe_intermediate_size=36, tie_word_embeddings=False,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"], rope_parameters=TWO_ROPES,
    ),
    "llama4_text": dict(
        BASE, num_hidden_layers=5, head_dim=24, intermediate_size=40, intermediate_size_mlp=96, num_local_experts=6,
        num_experts_per_tok=1, interleave_moe_layer_step=1, attention_chunk_size=8, use_qk_norm=True, floor_scale=12,
        attn_scale=0.7, rope_parameters={**LLAMA3, "low_freq_factor": 1.0, "high_freq_factor": 1.0},
    ),
    "llama4_text-interleaved": dict(
        BASE, num_hidden_layers=4, head_dim=32, intermediate_size=36, intermediate_size_mlp=80, num_local_experts=5,
        num_experts_per_tok=1, interleave_moe_layer_step=2, attention_chunk_size=5, use_qk_norm=False,
        attention_bias=True, no_rope_layers=[0, 1, 1, 0], floor_scale=9, attn_scale=0.4, rope_theta=10000.0,
    ),
    "mistral4": dict(
        LATENT, n_routed_experts=9, num_experts_per_tok=3, n_shared_experts=1, routed_scaling_factor=1.6, n_group=3,
        topk_group=2, norm_topk_prob=True,
        rope_parameters={
            **YARN, "original_max_position_embeddings": 16, "mscale": 1.0, "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.6, "max_position_embeddings": 256,
        },
    ),
    "mistral4-straight": dict(
        LATENT, q_lora_rank=None, n_routed_experts=8, num_experts_per_tok=2, n_shared_experts=2,
        routed_scaling_factor=1.0, n_group=1, topk_group=1, norm_topk_prob=True, first_k_dense_replace=0,
        attention_bias=True, rope_parameters={**YARN, "llama_4_scaling_beta": 0.3, "mscale_all_dim": 0.5},
    ),
    "mistral_large4": dict(
        STILL, n_routed_experts=10, n_shared_experts=1, n_group=1, topk_group=1, num_hidden_layers=5,
        index_n_heads=14, final_logit_softcapping=3.0,
    ),
    "mistral_large4-shared": dict(
        STILL, n_routed_experts=9, n_shared_experts=2, n_group=3, topk_group=2, num_hidden_layers=4, index_n_heads=18,
        attention_bias=True, final_logit_softcapping=5.0, no_rope_layers=[1, 0, 0, 1],
        indexer_types=["full", "shared", "full", "shared"], first_k_dense_replace=0,
    ),
    "minimax_m3_vl_text": dict(
        BLOCKS, num_local_experts=9, index_topk_blocks=2, index_local_blocks=1, num_hidden_layers=4,
        layer_types=["full_attention", "minimax_m3_sparse", "minimax_m3_sparse", "minimax_m3_sparse"],
        mlp_layer_types=["dense", "sparse", "sparse", "sparse"], routed_scaling_factor=1.6,
    ),
    "minimax_m3_vl_text-one": dict(
        BLOCKS, num_local_experts=8, index_topk_blocks=1, index_local_blocks=1, num_hidden_layers=3,
        layer_types=["minimax_m3_sparse", "full_attention", "minimax_m3_sparse"], mlp_layer_types=["sparse"] * 3,
        routed_scaling_factor=1.0, num_key_value_heads=4, index_n_heads=4,
    ),
    "glm5_next": dict(
        RUNS, n_routed_experts=10, n_shared_experts=1, n_group=1, topk_group=1, num_hidden_layers=5, index_n_heads=14,
        layer_types=["linear_attention", "indexed_attention", "linear_attention", "indexed_attention",
                     "linear_attention"],
        mlp_layer_types=["dense", *["sparse"] * 4], linear_lower_bound=-3.0, swiglu_limit=0.8, hc_mult=3,
        hc_sinkhorn_iters=4,
    ),
    "glm5_next-free": dict(
        RUNS, n_routed_experts=9, n_shared_experts=2, n_group=3, topk_group=2, num_hidden_layers=4, index_n_heads=15,
        layer_types=["indexed_attention", "linear_attention", "linear_attention", "indexed_attention"],
        mlp_layer_types=["sparse"] * 4, linear_lower_bound=None, swiglu_limit=10.0, hc_mult=2, hc_sinkhorn_iters=20,
        attention_bias=True, first_k_dense_replace=0,
    ),
    "qwen4_exp_text": dict(
        GRAMS, num_hidden_layers=4, ple_layer_ids=[1, 3], hc_count=3, hc_lowrank=12,
        layer_types=["linear_attention", "indexed_attention", "linear_attention", "indexed_attention"],
    ),
    "qwen4_exp_text-one": dict(
        GRAMS, num_hidden_layers=4, ple_layer_ids=[2], hc_count=2, hc_lowrank=20, ngram_size=2, heads_per_ngram=4,
        norm_topk_prob=False, ple_conv_kernel_size=3, output_gate_type="sigmoid",
    ),
    "deepseek_v4": dict(
        ENTRIES, n_routed_experts=10, mlp_layer_types=["hash_moe", "moe", "moe", "moe"], routed_scaling_factor=1.5,
        layer_types=[f"{kind}_attention" for kind in
                     ("sliding", "compressed_sparse", "heavily_compressed", "compressed_sparse")],
        compress_rates={"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
    ),
    "deepseek_v4-yarn": dict(
        ENTRIES, n_routed_experts=9, mlp_layer_types=["hash_moe", "hash_moe", "moe"], num_hidden_layers=3,
        layer_types=[f"{kind}_attention" for kind in ("heavily_compressed", "compressed_sparse", "sliding")],
        compress_rates={"compressed_sparse_attention": 8, "heavily_compressed_attention": 64}, o_groups=4, hc_mult=2,
        hc_sinkhorn_iters=20, routed_scaling_factor=2.5, sliding_window=40, swiglu_limit=10.0, index_topk=5,
        rope_parameters={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    ),
    "phimoe": dict(
        BASE, intermediate_size=40, num_local_experts=6, num_experts_per_tok=2, router_jitter_noise=0.3,
        attention_bias=True, lm_head_bias=True, rope_parameters=LONGROPE,
    ),
    "phimoe-plain": dict(
        BASE, intermediate_size=48, num_local_experts=7, num_experts_per_tok=2, router_jitter_noise=0.15,
        attention_bias=False, lm_head_bias=False, rope_theta=10000.0,
    ),
    "mimo_v2_flash": dict(
        BIASED, num_hidden_layers=4, num_attention_heads=8, v_head_dim=20, n_routed_experts=9, sliding_window=8,
        layer_types=KINDS, mlp_layer_types=SPARSE, attention_value_scale=0.6, routed_scaling_factor=1.3,
        rope_parameters=PART_TURNED, n_group=1, topk_group=1,
    ),
    "mimo_v2_flash-bias": dict(
        BIASED, num_hidden_layers=4, num_attention_heads=8, v_head_dim=36, n_routed_experts=9, sliding_window=5,
        layer_types=KINDS[::-1], mlp_layer_types=SPARSE, attention_value_scale=None, attention_bias=True,
        rope_parameters=PART_TURNED, n_group=3, topk_group=2,
    ),
    "step3p5": dict(
        BASE, num_hidden_layers=5, num_attention_heads=4, num_sliding_attention_heads=6, head_dim=24,
        intermediate_size=96, moe_intermediate_size=40, share_expert_dim=48, n_routed_experts=9, num_experts_per_tok=3,
        sliding_window=7, moe_router_scaling_factor=1.7, layer_types=[*KINDS, "sliding_attention"],
        mlp_layer_types=[*SPARSE, "sparse"], swiglu_limits=[0.0, 0.0, 0.3, None, 0.2],
        swiglu_limits_shared=[0.5, None, 0.0, 0.0, 0.25],
        rope_parameters={
            "full_attention": {**LLAMA3, "partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
        },
    ),
    "laguna": dict(
        BIASED, num_hidden_layers=5, num_experts=9, shared_expert_intermediate_size=48, sliding_window=8,
        layer_types=[*KINDS[:3], KINDS[1], KINDS[0]], mlp_layer_types=[*SPARSE, "sparse"],
        num_attention_heads_per_layer=[4, 6, 8, 6, 4],
        moe_routed_scaling_factor=1.7, gating=True,
        rope_parameters={
            "full_attention": {**YARN, "partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
        },
    ),
    "laguna-values": dict(
        BIASED, num_experts=8, shared_expert_intermediate_size=40, sliding_window=8, attention_bias=True,
        layer_types=["full_attention"] * 3, mlp_layer_types=SPARSE[:3], moe_routed_scaling_factor=1.0,
        gating="per-element", rope_parameters={"full_attention": HALF},
    ),
    "lfm2_moe": dict(
        BASE, num_hidden_layers=5, intermediate_size=96, moe_intermediate_size=40, num_experts=9, num_experts_per_tok=3,
        num_dense_layers=1, conv_L_cache=3, routed_scaling_factor=1.3, rope_theta=1e6,
        layer_types=["conv", "full_attention", "conv", "conv", "full_attention"],
    ),
    "lfm2_moe-bias": dict(
        BASE, num_hidden_layers=4, intermediate_size=96, moe_intermediate_size=44, num_experts=8, num_experts_per_tok=2,
        num_dense_layers=2, conv_L_cache=4, conv_bias=True, use_expert_bias=False, norm_topk_prob=False,
        tie_word_embeddings=False, layer_types=["conv", "conv", "full_attention", "conv"],
    ),
    "granitemoehybrid": dict(
        SPACE, mamba_n_groups=1, mamba_conv_bias=True, position_embedding_type="nope", tie_word_embeddings=True,
    ),
    "granitemoehybrid-groups": dict(
        SPACE, mamba_n_groups=2, mamba_conv_bias=False, mamba_proj_bias=True, position_embedding_type="rope",
        time_step_limit=[0.4, 1.1], attention_bias=True, tie_word_embeddings=False,
        layer_types=["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    ),
    "nemotron_h": dict(
        NEMOTRON, layers_block_type=["linear_attention", "moe", "full_attention", "moe", "linear_attention", "moe"],
        n_groups=2, n_group=1, topk_group=1, routed_scaling_factor=2.5,
    ),
    "nemotron_h-mlp": dict(
        NEMOTRON, layers_block_type=["moe", "linear_attention", "linear_attention", "mlp", "full_attention"],
        n_groups=4, n_group=3, topk_group=2, routed_scaling_factor=1.0, use_conv_bias=False, use_bias=True,
        tie_word_embeddings=False,
    ),
    "nemotron_h-latent": dict(
        NEMOTRON, layers_block_type=["linear_attention", "moe", "full_attention", "moe"], n_groups=2, n_group=1,
        topk_group=1, routed_scaling_factor=1.7, moe_latent_size=48,
    ),
}  # fmt: skip


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Gives every stored tensor values that matter: norms near one, the rest normal, so that logits come near 4."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("tid2eid"):
            chosen = torch.stack([torch.randperm(8, generator=generator)[: tensor.shape[1]] for _ in tensor])
            tensor.copy_(chosen + torch.randint(2, (len(tensor), 1), generator=generator))
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if ("norm" in name and not name.endswith("bias")) or name.endswith(
            ("layer_scalar", "router.scale", "per_expert_scale")
        ):
            tensor.copy_(1 + 0.1 * noise)
        elif name.endswith(("e_score_correction_bias", "expert_bias")):
            tensor.copy_(0.1 * noise)
        elif name.endswith(".D"):
            tensor.copy_(noise)
        elif name.endswith(("bias", "sinks", "A_log")):
            tensor.copy_(0.2 * noise)
        else:
            tensor.copy_(noise / tensor.shape[-1] ** 0.5)


class StepWithHead(torch.nn.Module):
    """Step's text model, which transformers has without a head, behind one; saved under the names of its releases."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.config = Step3p7TextConfig(**settings)
        self.model = Step3p7TextModel._from_config(self.config, dtype=torch.float32, attn_implementation="eager")
        self.lm_head = torch.nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)

    def forward(self, ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.lm_head(self.model(ids).last_hidden_state))

    def save_pretrained(self, directory: Path) -> None:
        self.config.save_pretrained(directory)
        found: dict[str, torch.Tensor] = {}
        for name, tensor in self.state_dict().items():
            place, _, rest = name.partition(".mlp.")
            if rest == "experts.gate_up_proj":
                found |= {f"{place}.moe.{part}_proj.weight": half.contiguous()
                          for part, half in zip(("gate", "up"), tensor.chunk(2, 1), strict=True)}  # fmt: skip
            else:
                moved = {"gate.weight": "moe.gate.weight", "gate.e_score_correction_bias": "moe.router_bias",
                         "experts.down_proj": "moe.down_proj.weight"}.get(rest)  # fmt: skip
                shared = rest.replace("shared_experts.", "share_expert.") if "shared_experts." in rest else None
                found[f"{place}.{moved or shared}" if moved or shared else name] = tensor.contiguous()
        save_file(found, directory / "model.safetensors")


# Not among those that the Auto class makes.
OWN = {"mistral4": Mistral4ForCausalLM._from_config}


def build(variant: str, directory: Path, seed: int = 0, **changes: Any) -> Any:
    """Saves a tiny checkpoint of `variant` in float32 and returns the model it came from, ready to be compared with."""
    if variant.startswith("step3p5"):
        step = StepWithHead({**VARIANTS[variant], **changes}).eval()
        with torch.no_grad():
            randomise(step, seed)
        step.save_pretrained(directory)
        return step
    if variant.split("-")[0] in tiny_wrapped.EYES:
        wrapped = tiny_wrapped.Wrapped(variant.split("-")[0], {**VARIANTS[variant], **changes}).eval()
        with torch.no_grad():
            randomise(wrapped, seed)
        wrapped.save_pretrained(directory)
        return wrapped
    config = AutoConfig.for_model(variant.split("-")[0], **{**VARIANTS[variant], **changes})
    maker = OWN.get(variant.split("-")[0], AutoModelForCausalLM.from_config)
    model = maker(config, dtype=torch.float32, attn_implementation="eager")
    if not variant.startswith("llama4"):  # whose experts have one implementation
        model.set_experts_implementation("eager")
    with torch.no_grad():
        randomise(model, seed)
    model.eval()
    model.save_pretrained(directory)
    if variant.startswith("kimi_linear"):
        _name_as_released(directory)
    if variant.startswith("minimax_m3"):
        tiny_wrapped.name_minimax_m3(directory)
    if variant.startswith("deepseek_v4"):
        tiny_wrapped.name_deepseek_v4(directory)
    return model


def _name_as_released(directory: Path) -> None:
    """transformers puts dense layers where experts are, which releases do not."""
    for path in directory.glob("*.safetensors"):
        tensors = safetensors.torch.load_file(path)
        named = {re.sub(r"block_sparse_moe\.((gate|up|down)_proj)", r"mlp.\1", name): t for name, t in tensors.items()}
        safetensors.torch.save_file(named, path, {"format": "pt"})


def oracle_logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """transformers' logits after every token: float32 [tokens, vocabulary]."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float()


def oracle_greedy(model: PreTrainedModel, ids: list[int], said: list[int]) -> list[int]:
    """What transformers takes for likeliest after the prompt and each token of `said`: `said` itself, if that is its
    greedy continuation too. One pass instead of one for every token."""
    logits = oracle_logits(model, [*ids, *said[:-1]])
    return logits[len(ids) - 1 :].argmax(-1).tolist()
