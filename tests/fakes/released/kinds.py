"""Released configs of families whose attention differs by the kind of a layer: the keys that releases have, with the
values that model cards and transformers' defaults of these checkpoints say."""

from __future__ import annotations

from typing import Any

from .mixers import FP8

_PATTERN = [0] + ([1] * 4 + [0] + [1] * 5 + [0] + [1] * 5 + [0] + [1] * 5 + [0] + [1] * 5 + [0] + [1] * 5 + [0]
                  + [1] * 5 + [0] + [1] * 5 + [0])  # fmt: skip
MIMO_V2_FLASH: dict[str, Any] = {
    "add_full_attention_sink_bias": False, "add_swa_attention_sink_bias": True,
    "architectures": ["MiMoV2FlashForCausalLM"], "attention_bias": False, "attention_chunk_size": 128,
    "attention_dropout": 0.0, "attention_value_scale": 0.707,
    "auto_map": {"AutoConfig": "configuration_mimo_v2_flash.MiMoV2FlashConfig"}, "head_dim": 192,
    "hidden_act": "silu", "hidden_size": 4096, "hybrid_block_size": None, "hybrid_layer_pattern": _PATTERN,
    "initializer_range": 0.02, "intermediate_size": 16384, "layernorm_epsilon": 1e-05,
    "max_position_embeddings": 262144, "model_type": "mimo_v2_flash", "moe_intermediate_size": 2048,
    "moe_layer_freq": [0] + [1] * 47, "n_group": 1, "n_routed_experts": 256, "n_shared_experts": None,
    "norm_topk_prob": True, "num_attention_heads": 64, "num_experts_per_tok": 8, "num_hidden_layers": 48,
    "num_key_value_heads": 4, "partial_rotary_factor": 0.334,
    "quantization_config": {**FP8, "ignored_layers": [f"model.layers.{i}.self_attn.o_proj" for i in range(48)]},
    "rope_theta": 5000000, "routed_scaling_factor": None, "scoring_func": "sigmoid", "sliding_window": 128,
    "sliding_window_size": 128, "swa_head_dim": 192, "swa_num_attention_heads": 64, "swa_num_key_value_heads": 8,
    "swa_rope_theta": 10000, "swa_v_head_dim": 128, "tie_word_embeddings": False, "topk_group": 1,
    "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": True,
    "v_head_dim": 128, "vocab_size": 152576,
}  # fmt: skip
_CYCLE = ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"]
STEP_35_FLASH: dict[str, Any] = {
    "architectures": ["Step3p5ForCausalLM"], "att_impl_type": "GQA",
    "attention_other_setting": {
        "attention_type": "sliding_attention", "head_dim": 128, "num_attention_groups": 8, "num_attention_heads": 96,
        "true_head_dim": 128,
    },
    "bos_token_id": 0, "eos_token_id": [1, 2, 128007], "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
    "intermediate_size": 11264, "layer_types": _CYCLE * 12, "max_position_embeddings": 262144, "max_seq_len": 262144,
    "model_type": "step3p5", "moe_every_n_layer": 1, "moe_intermediate_size": 1280, "moe_layer_offset": 0,
    "moe_layers_enum": ",".join(map(str, range(3, 45))), "moe_num_experts": 288, "moe_router_activation": "sigmoid",
    "moe_router_scaling_factor": 3.0, "moe_top_k": 8, "need_fp32_gate": True, "norm_expert_weight": True,
    "num_attention_groups": 8, "num_attention_heads": 64, "num_hidden_layers": 45, "num_nextn_predict_layers": 3,
    "partial_rotary_factors": [0.5, 1.0, 1.0, 1.0] * 12, "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 2.0, "high_freq_factor": 32.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 131072,
        "rope_type": "llama3",
    },
    "rope_theta": [5000000.0, 10000.0, 10000.0, 10000.0] * 12, "share_expert_dim": 1280, "sink": False,
    "sliding_window": 512, "swiglu_limits": [0.0] * 43 + [7, 7] + [0.0] * 3,
    "swiglu_limits_shared": [0.0] * 44 + [16] + [0.0] * 3, "torch_dtype": "bfloat16", "use_head_wise_attn_gate": True,
    "use_moe": True, "use_moe_router_bias": True, "use_rope_layers": [], "vocab_size": 128896,
    "yarn_only_types": ["full_attention"], "zero_centered": True,
}  # fmt: skip
# With eyes, which are left out; the text model is the same but for a limit.
STEP_37_FLASH: dict[str, Any] = {
    "architectures": ["Step3p7ForConditionalGeneration"], "image_token_id": 128001, "model_type": "step3p7",
    "projector_bias": False, "text_config": {
        **{key: value for key, value in STEP_35_FLASH.items() if key != "model_type"},
        "swiglu_limits_shared": [0.0] * 43 + [16, 16] + [0.0] * 3,
    },
    "vision_config": {"layers": 47, "model_type": "perception_encoder", "width": 1536},
}  # fmt: skip
LAGUNA_XS: dict[str, Any] = {
    "architectures": ["LagunaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 2,
    "decoder_sparse_step": 1, "eos_token_id": [2, 24], "gating": "per-head", "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192, "layer_types": _CYCLE * 10,
    "max_position_embeddings": 131072, "mlp_layer_types": ["dense"] + ["sparse"] * 39, "mlp_only_layers": [0],
    "model_type": "laguna", "moe_apply_router_weight_on_input": False, "moe_intermediate_size": 512,
    "moe_routed_scaling_factor": 2.5, "moe_router_logit_softcapping": 0.0, "norm_topk_prob": True,
    "num_attention_heads": 48, "num_attention_heads_per_layer": [48, 64, 64, 64] * 10, "num_experts": 256,
    "num_experts_per_tok": 8, "num_hidden_layers": 40, "num_key_value_heads": 8, "output_router_logits": False,
    "pad_token_id": 9, "qkv_bias": False, "rms_norm_eps": 1e-06,
    "rope_parameters": {
        "full_attention": {
            "attention_factor": 1.3465735902799727, "beta_fast": 64.0, "beta_slow": 1.0, "factor": 32.0,
            "original_max_position_embeddings": 8192, "partial_rotary_factor": 0.5, "rope_theta": 500000.0,
            "rope_type": "yarn",
        },
        "sliding_attention": {"partial_rotary_factor": 1.0, "rope_theta": 10000.0, "rope_type": "default"},
    },
    "router_aux_loss_coef": 0.0, "shared_expert_intermediate_size": 512, "sliding_window": 512,
    "tie_word_embeddings": False, "use_cache": True, "vocab_size": 100352,
}  # fmt: skip
KINDS = {
    "mimo-v2-flash": MIMO_V2_FLASH,
    "step-3.5-flash": STEP_35_FLASH,
    "step-3.7-flash": STEP_37_FLASH,
    "laguna-xs.2": LAGUNA_XS,
}
