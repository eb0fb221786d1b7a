"""Qwen2-MoE: Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B. A gated shared expert runs beside the routed ones."""

from .family import Family, Key

QWEN2_MOE = Family(
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    experts=("num_experts",),
    expert_width="moe_intermediate_size",
    dense_width="intermediate_size",
    shared_width="shared_expert_intermediate_size",
    shared_gate=True,
    scoring="softmax",
    renormalise=Key("norm_topk_prob"),
    qkv_bias=Key("qkv_bias", True),  # released configs leave it out, released weights have the biases
    window_needs_switch=True,
)
