"""Configs of families of plain attention with dense layers, a shared expert or a biased choice: the keys that releases
have, with the values that the model cards and transformers' defaults of these checkpoints say."""

from __future__ import annotations

from typing import Any

_GLM: dict[str, Any] = {
    "architectures": ["Glm4MoeForCausalLM"], "attention_bias": True, "attention_dropout": 0.0,
    "eos_token_id": [151329, 151336, 151338], "head_dim": 128, "hidden_act": "silu", "initializer_range": 0.02,
    "max_position_embeddings": 131072, "model_type": "glm4_moe", "n_group": 1, "n_shared_experts": 1,
    "norm_topk_prob": True, "num_attention_heads": 96, "num_experts_per_tok": 8, "num_key_value_heads": 8,
    "num_nextn_predict_layers": 1, "pad_token_id": 151329, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05,
    "rope_scaling": None, "rope_theta": 1000000, "tie_word_embeddings": False, "topk_group": 1,
    "torch_dtype": "bfloat16", "transformers_version": "4.54.0", "use_cache": True, "vocab_size": 151552,
}  # fmt: skip
GLM_45 = {
    **_GLM, "first_k_dense_replace": 3, "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536,
    "n_routed_experts": 160, "num_hidden_layers": 92, "routed_scaling_factor": 2.5, "use_qk_norm": True,
}  # fmt: skip
GLM_46 = {**GLM_45, "max_position_embeddings": 202752}
GLM_45_AIR = {
    **_GLM, "first_k_dense_replace": 1, "hidden_size": 4096, "intermediate_size": 10944, "moe_intermediate_size": 1408,
    "n_routed_experts": 128, "num_hidden_layers": 46, "routed_scaling_factor": 1.0, "use_qk_norm": False,
}  # fmt: skip
MINIMAX_M2: dict[str, Any] = {
    "architectures": ["MiniMaxM2ForCausalLM"], "attention_dropout": 0.0, "attn_type_list": [1] * 62,
    "bos_token_id": None, "eos_token_id": None, "head_dim": 128, "hidden_act": "silu", "hidden_size": 3072,
    "initializer_range": 0.02, "intermediate_size": 1536, "layernorm_full_attention_beta": 1.0,
    "layernorm_linear_attention_beta": 1.0, "layernorm_mlp_beta": 1.0, "max_position_embeddings": 196608,
    "mlp_intermediate_size": 8192, "model_type": "minimax_m2", "mtp_transformer_layers": 1, "num_attention_heads": 48,
    "num_experts_per_tok": 8, "num_hidden_layers": 62, "num_key_value_heads": 8, "num_local_experts": 256,
    "num_mtp_modules": 3, "output_router_logits": False, "qk_norm_type": "per_layer",
    "quantization_config": {
        "activation_scheme": "dynamic", "fmt": "float8_e4m3fn", "quant_method": "fp8", "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06, "rope_theta": 5000000, "rotary_dim": 64, "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0, "scoring_func": "sigmoid", "shared_intermediate_size": 0,
    "shared_moe_mode": "sigmoid", "sliding_window": None, "tie_word_embeddings": False,
    "transformers_version": "4.46.1", "use_cache": True, "use_mtp": True, "use_qk_norm": True,
    "use_routing_bias": True, "vocab_size": 200064,
}  # fmt: skip
DOTS_LLM1: dict[str, Any] = {
    "architectures": ["Dots1ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": None,
    "eos_token_id": 151645, "first_k_dense_replace": 1, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
    "initializer_range": 0.02, "intermediate_size": 10944, "max_position_embeddings": 32768,
    "model_type": "dots1", "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 128,
    "n_shared_experts": 2, "norm_topk_prob": True, "num_attention_heads": 32, "num_experts_per_tok": 6,
    "num_hidden_layers": 62, "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": None, "rope_theta": 10000000, "routed_scaling_factor": 2.5, "scoring_func": "noaux_tc",
    "sliding_window": None, "tie_word_embeddings": False, "topk_group": 1, "torch_dtype": "bfloat16",
    "transformers_version": "4.46.3", "use_cache": True, "vocab_size": 152064,
}  # fmt: skip
SOLAR_OPEN_100B: dict[str, Any] = {
    "architectures": ["SolarOpenForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "first_k_dense_replace": 0, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 10240, "max_position_embeddings": 131072, "model_type": "solar_open",
    "moe_intermediate_size": 1280, "n_group": 1, "n_routed_experts": 128, "n_shared_experts": 1,
    "norm_topk_prob": True, "num_attention_heads": 64, "num_experts_per_tok": 8, "num_hidden_layers": 48,
    "num_key_value_heads": 8, "partial_rotary_factor": 1.0, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "rope_theta": 1000000, "routed_scaling_factor": 1.0, "tie_word_embeddings": False, "topk_group": 1,
    "use_cache": True, "use_qk_norm": False, "vocab_size": 196608,
}  # fmt: skip
HY3: dict[str, Any] = {
    "architectures": ["HYV3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "enable_moe_fp32_combine": True, "first_k_dense_replace": 1, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.006, "intermediate_size": 13312, "max_position_embeddings": 131072,
    "mlp_bias": False, "model_type": "hy_v3", "moe_intermediate_size": 1536, "num_attention_heads": 64,
    "num_experts": 192, "num_experts_per_tok": 8, "num_hidden_layers": 80, "num_key_value_heads": 8,
    "num_shared_experts": 1, "rms_norm_eps": 1e-05, "rope_theta": 11158840.0, "router_scaling_factor": 2.826,
    "tie_word_embeddings": False, "use_cache": True, "vocab_size": 120832,
}  # fmt: skip
_ERNIE: dict[str, Any] = {
    "architectures": ["Ernie4_5_MoeForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "max_position_embeddings": 131072, "model_type": "ernie4_5_moe", "moe_layer_interval": 1, "moe_norm_min": 1e-12,
    "moe_num_experts": 64, "pad_token_id": 0, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "torch_dtype": "bfloat16",
    "transformers_version": "4.54.0", "use_bias": False, "use_cache": True, "vocab_size": 103424,
}  # fmt: skip
ERNIE_21B = {
    **_ERNIE, "head_dim": 128, "hidden_size": 2560, "intermediate_size": 12288, "moe_intermediate_size": 1536,
    "moe_k": 6, "moe_layer_end_index": 27, "moe_layer_start_index": 1, "moe_num_shared_experts": 2,
    "num_attention_heads": 20, "num_hidden_layers": 28, "num_key_value_heads": 4, "tie_word_embeddings": True,
}  # fmt: skip
ERNIE_300B = {
    **_ERNIE, "hidden_size": 8192, "intermediate_size": 28672, "moe_intermediate_size": 3584, "moe_k": 8,
    "moe_layer_end_index": -1, "moe_layer_start_index": 3, "moe_num_shared_experts": 0, "num_attention_heads": 64,
    "num_hidden_layers": 54, "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip
GRANITE_SHARED: dict[str, Any] = {
    "architectures": ["GraniteMoeSharedForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attention_multiplier": 0.0078125, "embedding_multiplier": 12.0, "hidden_act": "silu", "hidden_size": 1536,
    "intermediate_size": 512, "logits_scaling": 6.0, "max_position_embeddings": 131072,
    "model_type": "granitemoeshared", "num_attention_heads": 24, "num_experts_per_tok": 6, "num_hidden_layers": 40,
    "num_key_value_heads": 8, "num_local_experts": 62, "output_router_logits": False, "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "router_aux_loss_coef": 0.0, "shared_intermediate_size": 1024,
    "tie_word_embeddings": True, "vocab_size": 100352,
}  # fmt: skip
K_EXAONE: dict[str, Any] = {
    "architectures": ["ExaoneMoeForCausalLM"], "attention_dropout": 0.0, "first_k_dense_replace": 1, "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 6144, "intermediate_size": 18432,
    "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 12, "max_position_embeddings": 262144,
    "mlp_layer_types": ["dense"] + ["sparse"] * 47, "model_type": "exaone_moe", "moe_intermediate_size": 2048,
    "n_group": 1, "norm_topk_prob": True, "num_attention_heads": 64, "num_experts": 128, "num_experts_per_tok": 8,
    "num_hidden_layers": 48, "num_key_value_heads": 8, "num_nextn_predict_layers": 1, "num_shared_experts": 1,
    "rms_norm_eps": 1e-05, "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
    "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "sliding_window": 128, "sliding_window_pattern": "LLLG",
    "tie_word_embeddings": False, "topk_group": 1, "topk_method": "noaux_tc", "use_cache": True, "vocab_size": 153600,
}  # fmt: skip
HUNYUAN_A13B: dict[str, Any] = {
    "architectures": ["HunYuanMoEV1ForCausalLM"], "attention_bias": False, "attention_dropout": 0.1,
    "attention_head_dim": 128, "cla_share_factor": 2, "eos_token_id": 127960, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 32768,
    "mlp_bias": False, "model_type": "hunyuan_v1_moe", "moe_drop_tokens": False, "moe_intermediate_size": [3072] * 32,
    "moe_layer_num_skipped": 0, "moe_topk": [8] * 32, "norm_topk_prob": True, "norm_type": "rms",
    "num_attention_heads": 32, "num_experts": 64, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "num_shared_expert": [1] * 32, "org_vocab_size": 128167, "pad_id": -1, "pad_token_id": 127961, "pool_type": "last",
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "type": "dynamic",
    },
    "rope_theta": 10000.0, "routed_scaling_factor": 1.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "use_cache": True, "use_cla": False, "use_mixed_mlp_moe": True, "use_qk_norm": True, "use_rotary_pos_emb": True,
    "vocab_size": 128167,
}  # fmt: skip
BIASED = {
    "glm-4.5": GLM_45,
    "glm-4.6": GLM_46,
    "glm-4.5-air": GLM_45_AIR,
    "minimax-m2": MINIMAX_M2,
    "dots.llm1": DOTS_LLM1,
    "solar-open-100b": SOLAR_OPEN_100B,
    "hy3": HY3,
    "ernie-4.5-21b-a3b": ERNIE_21B,
    "ernie-4.5-300b-a47b": ERNIE_300B,
    "granite-shared": GRANITE_SHARED,
    "k-exaone": K_EXAONE,
    "hunyuan-a13b": HUNYUAN_A13B,
}
