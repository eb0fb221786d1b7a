"""Qwen3-MoE: 30B-A3B, 235B-A22B, Coder-30B and -480B, and the packaged demo model."""

from .family import Family, Key

QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    experts=("num_experts", "num_local_experts"),  # released, and as newer exporters write it
    expert_width="moe_intermediate_size",
    dense_width="intermediate_size",
    scoring="softmax",
    renormalise=Key("norm_topk_prob"),
    qkv_bias=Key("attention_bias"),
    output_bias=Key("attention_bias"),
    qk_norm="head",
    window_needs_switch=True,
)
