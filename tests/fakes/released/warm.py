"""Configs of Llama 4 and Phi-3.5-MoE as the hub has them, and of Mistral-Small-4 and Mistral-Large-4 with the values of
their configurations in transformers."""

from __future__ import annotations

from typing import Any

LLAMA_4_SCOUT: dict[str, Any] = {
    "architectures": ["Llama4ForConditionalGeneration"], "boi_token_index": 200080, "eoi_token_index": 200081,
    "image_token_index": 200092, "model_type": "llama4", "tie_word_embeddings": False,
    "text_config": {
        "_attn_implementation_autoset": True, "attention_bias": False, "attention_chunk_size": 8192,
        "attention_dropout": 0.0, "bos_token_id": 200000, "eos_token_id": [200001, 200007, 200008],
        "for_llm_compressor": False, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
        "initializer_range": 0.02, "interleave_moe_layer_step": 1, "intermediate_size": 8192,
        "intermediate_size_mlp": 16384, "max_position_embeddings": 10485760, "model_type": "llama4_text",
        "no_rope_layers": [], "num_attention_heads": 40, "num_experts_per_tok": 1, "num_hidden_layers": 48,
        "num_key_value_heads": 8, "num_local_experts": 16, "output_router_logits": False, "pad_token_id": 200018,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 16.0, "high_freq_factor": 1.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0, "router_aux_loss_coef": 0.001, "router_jitter_noise": 0.0, "torch_dtype": "bfloat16",
        "use_cache": True, "use_qk_norm": True, "vocab_size": 202048,
    },
    "torch_dtype": "bfloat16", "transformers_version": "4.51.0.dev0",
    "vision_config": {"hidden_size": 1408, "model_type": "llama4_vision_model", "num_hidden_layers": 34},
}  # fmt: skip
LLAMA_4_MAVERICK: dict[str, Any] = {
    **LLAMA_4_SCOUT,
    "text_config": {
        **LLAMA_4_SCOUT["text_config"], "attn_scale": 0.1, "attn_temperature_tuning": True, "floor_scale": 8192,
        "interleave_moe_layer_step": 2, "max_position_embeddings": 1048576, "moe_layers": [*range(1, 48, 2)],
        "no_rope_layers": [1, 1, 1, 0] * 12, "num_local_experts": 128, "rope_scaling": None, "use_qk_norm": False,
    },
}  # fmt: skip
# Its two lists have 64 numbers each; their values are made up here, as are those of no other key.
PHI_35_MOE: dict[str, Any] = {
    "architectures": ["PhiMoEForCausalLM"], "attention_bias": True, "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 32000, "hidden_act": "silu", "hidden_dropout": 0.0, "hidden_size": 4096,
    "initializer_range": 0.02, "input_jitter_noise": 0.01, "intermediate_size": 6400, "lm_head_bias": True,
    "max_position_embeddings": 131072, "model_type": "phimoe", "num_attention_heads": 32, "num_experts_per_tok": 2,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 16,
    "original_max_position_embeddings": 4096, "output_router_logits": False, "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "long_factor": [1.0 + i for i in range(64)], "long_mscale": 1.243163121016122,
        "original_max_position_embeddings": 4096, "short_factor": [1.0] * 64, "short_mscale": 1.243163121016122,
        "type": "longrope",
    },
    "rope_theta": 10000.0, "router_aux_loss_coef": 0.0, "router_jitter_noise": 0.01, "sliding_window": 131072,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.43.3", "use_cache": True,
    "vocab_size": 32064,
}  # fmt: skip
MISTRAL_SMALL_4: dict[str, Any] = {
    "architectures": ["Mistral3ForConditionalGeneration"], "image_token_index": 10, "model_type": "mistral3",
    "multimodal_projector_bias": False, "projector_hidden_act": "gelu", "spatial_merge_size": 2,
    "text_config": {
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "first_k_dense_replace": 0, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 12288, "kv_lora_rank": 256,
        "max_position_embeddings": 1048576, "model_type": "mistral4", "moe_intermediate_size": 2048, "n_group": 1,
        "n_routed_experts": 128, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 32,
        "num_experts_per_tok": 4, "num_hidden_layers": 36, "num_key_value_heads": 32, "pad_token_id": 11,
        "pretraining_tp": 1, "q_lora_rank": 1024, "qk_head_dim": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-06, "rope_interleave": True,
        "rope_parameters": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 128.0, "llama_4_scaling_beta": 0.1,
            "max_position_embeddings": 1048576, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 8192, "partial_rotary_factor": 0.5, "rope_theta": 10000.0,
            "rope_type": "yarn", "type": "yarn",
        },
        "routed_scaling_factor": 1.0, "tie_word_embeddings": False, "topk_group": 1, "use_cache": True,
        "v_head_dim": 128, "vocab_size": 131072,
    },
    "transformers_version": "5.23.0",
    "vision_config": {"hidden_size": 1024, "model_type": "pixtral", "num_hidden_layers": 24},
    "vision_feature_layer": -1,
}  # fmt: skip
MISTRAL_LARGE_4: dict[str, Any] = {
    "architectures": ["MistralLarge4ForConditionalGeneration"], "image_token_index": 10, "model_type": "mistral_large4",
    "multimodal_projector_bias": False, "projector_hidden_act": "gelu", "spatial_merge_size": 2,
    "text_config": {
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "final_logit_softcapping": 30.0, "first_k_dense_replace": 1, "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 6144, "index_head_dim": 128, "index_n_heads": 32, "index_topk": 2048,
        "indexer_types": ["full"] * 72, "initializer_range": 0.02, "intermediate_size": 24576, "kv_lora_rank": 512,
        "kv_source_layers": [*range(72)], "layer_types": ["indexed_attention"] * 72,
        "max_position_embeddings": 1048576, "mlp_layer_types": ["dense"] + ["sparse"] * 71,
        "model_type": "mistral_large4_text", "moe_intermediate_size": 6144, "n_group": 1, "n_routed_experts": 128,
        "n_shared_experts": 1, "no_rope_layers": [1, 1, 1, 0] * 18, "num_attention_heads": 64,
        "num_experts_per_tok": 4, "num_hidden_layers": 72, "num_key_value_heads": 64, "output_router_logits": False,
        "pad_token_id": None, "qk_head_dim": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-05,
        "rope_parameters": {
            "attention_factor": 1.0, "beta_fast": 32.0, "beta_slow": 1.0, "factor": 2048.0,
            "original_max_position_embeddings": 512, "rope_theta": 10000.0, "rope_type": "yarn",
        },
        "routed_scaling_factor": 1.0, "tie_word_embeddings": False, "topk_group": 1, "use_cache": True,
        "v_head_dim": 128, "vocab_size": 204800,
    },
    "transformers_version": "5.23.0",
    "vision_config": {"hidden_size": 2048, "model_type": "pixtral", "num_hidden_layers": 30},
    "vision_feature_layer": -1,
}  # fmt: skip
# The keys of its configuration in transformers, attention and router as its release spells them.
MINIMAX_M3: dict[str, Any] = {
    "architectures": ["MiniMaxM3SparseForConditionalGeneration"], "image_token_index": 200025,
    "model_type": "minimax_m3_vl",
    "text_config": {
        "attention_dropout": 0.0, "bos_token_id": 200034, "dense_intermediate_size": 12288, "eos_token_id": 200020,
        "head_dim": 128, "hidden_act": "swigluoai", "hidden_size": 6144, "initializer_range": 0.02,
        "intermediate_size": 3072, "max_position_embeddings": 524288, "model_type": "minimax_m3_vl_text",
        "moe_layer_freq": [0] * 3 + [1] * 57, "num_attention_heads": 64, "num_experts_per_tok": 4,
        "num_hidden_layers": 60, "num_key_value_heads": 4, "num_local_experts": 128, "output_router_logits": False,
        "pad_token_id": None, "rms_norm_eps": 1e-06, "rope_theta": 5000000.0, "rotary_dim": 64,
        "routed_scaling_factor": 2.0, "router_aux_loss_coef": 0.001, "router_jitter_noise": 0.0,
        "shared_intermediate_size": 3072,
        "sparse_attention_config": {
            "sparse_attention_freq": [0] * 3 + [1] * 57, "sparse_block_size": 128, "sparse_index_dim": 128,
            "sparse_local_block": 1, "sparse_num_index_heads": 4, "sparse_topk_blocks": 16,
        },
        "swiglu_alpha": 1.702, "swiglu_limit": 7.0, "tie_word_embeddings": False, "use_cache": True,
        "vocab_size": 200064,
    },
    "transformers_version": "5.23.0", "vision_config": {"hidden_size": 1280, "num_hidden_layers": 32},
}  # fmt: skip
# The values of its configuration in transformers, its delta rules as an object, as Kimi-Linear's.
GLM_53_FLASH: dict[str, Any] = {
    "architectures": ["Glm5NextForConditionalGeneration"], "image_token_id": 154854, "model_type": "glm5_next",
    "text_config": {
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": None, "eos_token_id": [154820, 154827],
        "hc_eps": 1e-06, "hc_mult": 4, "hc_sinkhorn_iters": 20, "head_dim": 0, "hidden_act": "silu",
        "hidden_size": 4096, "index_head_dim": 128, "index_kpool": 16, "index_kpool_always_select_tail": True,
        "index_n_heads": 32, "index_topk": 2048, "indexer_types": ["full"] * 45, "initializer_range": 0.02,
        "intermediate_size": 12288, "kv_lora_rank": 512,
        "layer_types": [*(["linear_attention"] * 3 + ["indexed_attention"]) * 11, "linear_attention"],
        "linear_attn_config": {
            "gate_lower_bound": -5.0, "head_dim": 128, "num_heads": 64, "safe_gate": True, "short_conv_kernel_size": 4,
        },
        "max_position_embeddings": 1048576, "mlp_layer_types": ["dense"] * 3 + ["sparse"] * 42,
        "model_type": "glm5_next_text", "moe_intermediate_size": 2048, "n_group": 1, "n_routed_experts": 288,
        "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 64, "num_experts_per_tok": 8,
        "num_hidden_layers": 45, "num_key_value_heads": 64, "output_router_logits": False, "pad_token_id": 154820,
        "q_lora_rank": 1536, "qk_head_dim": 256, "qk_nope_head_dim": 256, "qk_rope_head_dim": 0, "rms_norm_eps": 1e-05,
        "routed_scaling_factor": 2.5, "router_aux_loss_coef": 0.001, "swiglu_limit": 10.0,
        "tie_word_embeddings": False, "topk_group": 1, "use_cache": True, "v_head_dim": 256, "vocab_size": 154880,
    },
    "transformers_version": "5.23.0", "vision_config": {"hidden_size": 1024, "depth": 24},
}  # fmt: skip
# The values of its entry in the catalogue, its layers with one more for multi-token prediction.
DEEPSEEK_V4_FLASH: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0,
    "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0], "compress_rope_theta": 160000.0, "eos_token_id": 1,
    "expert_dtype": "fp4", "hc_eps": 1e-06, "hc_mult": 4, "hc_sinkhorn_iters": 20, "head_dim": 512,
    "hidden_act": "silu", "hidden_size": 4096, "index_head_dim": 128, "index_n_heads": 64, "index_topk": 512,
    "initializer_range": 0.02, "max_position_embeddings": 1048576, "model_type": "deepseek_v4",
    "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True,
    "num_attention_heads": 64, "num_experts_per_tok": 6, "num_hash_layers": 3, "num_hidden_layers": 43,
    "num_key_value_heads": 1, "num_nextn_predict_layers": 1, "o_groups": 8, "o_lora_rank": 1024, "q_lora_rank": 1024,
    "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32, "beta_slow": 1, "factor": 16, "original_max_position_embeddings": 65536, "type": "yarn",
    },
    "rope_theta": 10000.0, "routed_scaling_factor": 1.5, "scoring_func": "sqrtsoftplus", "sliding_window": 128,
    "swiglu_limit": 10.0, "tie_word_embeddings": False, "topk_method": "noaux_tc", "torch_dtype": "bfloat16",
    "use_cache": True, "vocab_size": 129280,
}  # fmt: skip
# The sizes of its entry in the catalogue; the indexer's, which are not known, are made up here.
QWEN_38_FLASH_NEXT: dict[str, Any] = {
    "architectures": ["Qwen4ExpForConditionalGeneration"], "image_token_id": 248056, "model_type": "qwen4_exp",
    "text_config": {
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": None, "eos_token_id": [248046, 248044],
        "hc_count": 4, "hc_lowrank": 320, "head_dim": 256, "heads_per_ngram": 8, "hidden_act": "silu",
        "hidden_size": 2560, "indexer_budget": 2048, "indexer_compress_ratio": 16, "indexer_head_dim": 128,
        "indexer_kv_heads": 1, "indexer_n_heads": 32, "initializer_range": 0.02,
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 12, "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 48,
        "linear_value_head_dim": 128, "make_ngram_vocab_size_divisible_by": 128, "max_position_embeddings": 262144,
        "model_type": "qwen4_exp_text", "moe_intermediate_size": 640, "ngram_size": 3,
        "ngram_vocab_size_base": 20000000, "norm_topk_prob": True, "num_attention_heads": 24, "num_experts": 512,
        "num_experts_per_tok": 10, "num_hidden_layers": 48, "num_key_value_heads": 2, "output_gate_type": "silu",
        "output_router_logits": False, "pad_token_id": None, "ple_conv_kernel_size": 4, "ple_embed_dim": 2560,
        "ple_layer_ids": [1], "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "mrope_interleaved": True, "mrope_section": [11, 11, 10], "partial_rotary_factor": 0.25,
            "rope_theta": 10000000.0, "rope_type": "default",
        },
        "router_aux_loss_coef": 0.001, "seed": 1234, "shared_expert_intermediate_size": 640, "split_ngram_parts": 512,
        "tie_word_embeddings": False, "use_cache": True, "vocab_size": 248320,
    },
    "transformers_version": "5.23.0", "vision_config": {"hidden_size": 1152, "depth": 27},
}  # fmt: skip
# The sizes of its entry in the catalogue; what an activation is bent by, and how many layers states of the residual
# stream are kept for, which are not known, are made up here.
KIMI_K3: dict[str, Any] = {
    "architectures": ["KimiK3ForConditionalGeneration"], "model_type": "kimi_k3",
    "text_config": {
        "activation_situ_beta": 10.0, "activation_situ_linear_beta": 10.0, "attn_res_block_size": 12,
        "bos_token_id": 163584, "eos_token_id": 163586, "first_k_dense_replace": 1, "hidden_act": "situ",
        "hidden_size": 7168, "intermediate_size": 33792, "kv_lora_rank": 512,
        "linear_attn_config": {
            "full_attn_layers": [*range(4, 93, 4), 93], "gate_lower_bound": -5.0, "head_dim": 128,
            "kda_layers": [i for i in range(1, 93) if i % 4], "num_heads": 96, "short_conv_kernel_size": 4,
        },
        "max_position_embeddings": 1048576, "mla_use_nope": True, "moe_intermediate_size": 3072,
        "moe_renormalize": True, "moe_router_activation_func": "sigmoid", "num_attention_heads": 96,
        "num_experts": 896, "num_experts_per_token": 16, "num_hidden_layers": 93, "num_key_value_heads": 96,
        "num_shared_experts": 2, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-05, "routed_expert_hidden_size": 3584, "routed_scaling_factor": 2.5,
        "tie_word_embeddings": False, "use_cache": True, "v_head_dim": 128, "vocab_size": 163840,
    },
    "vision_config": {"hidden_size": 1152, "depth": 27},
}  # fmt: skip
WARM = {
    "llama-4-scout": LLAMA_4_SCOUT,
    "llama-4-maverick": LLAMA_4_MAVERICK,
    "phi-3.5-moe": PHI_35_MOE,
    "mistral-small-4-119b": MISTRAL_SMALL_4,
    "mistral-large-4": MISTRAL_LARGE_4,
    "minimax-m3": MINIMAX_M3,
    "glm-5.3-flash": GLM_53_FLASH,
    "qwen-3.8-flash-next": QWEN_38_FLASH_NEXT,
    "kimi-k3": KIMI_K3,
    "deepseek-v4-flash": DEEPSEEK_V4_FLASH,
}
