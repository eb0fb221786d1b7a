"""Qwen3-Next, Qwen3.5-MoE and Qwen3.6-MoE: three layers with a gated delta rule, then one with attention whose output
is gated. Norms count from 1."""

from dataclasses import replace

from .family import FUSED, DeltaNames, Family, Key, TensorNames

QWEN3_NEXT = Family(
    model_type="qwen3_next",
    architecture="Qwen3NextForCausalLM",
    mixer="delta",
    experts=("num_experts", "num_local_experts"),
    expert_width="moe_intermediate_size",
    dense_width="intermediate_size",
    shared_width="shared_expert_intermediate_size",
    shared_gate=True,
    scoring="softmax",
    renormalise=Key("norm_topk_prob"),
    qkv_bias=Key("attention_bias", False),
    output_bias=Key("attention_bias", False),
    qk_norm="head",
    output_gate=True,
    implied={
        "attn_output_gate": (True, None),
        "mamba_ssm_dtype": ("float32", None),  # of states
        "output_gate_type": ("silu", "swish", None),  # of what a delta rule gives
    },
    window_needs_switch=True,
    tensors=TensorNames(
        norms_from_one=True,
        delta=DeltaNames(qkvz="linear_attn.in_proj_qkvz.weight", ba="linear_attn.in_proj_ba.weight"),
    ),
)
QWEN3_5_MOE = replace(
    QWEN3_NEXT,
    model_type="qwen3_5_moe",
    architecture="Qwen3_5MoeForCausalLM",
    dense_width=None,
    renormalise=True,
    tensors=replace(FUSED, norms_from_one=True),
)
