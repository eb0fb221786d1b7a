"""Families of plain attention whose router's choice is biased, as DeepSeek-V3's is, beside a shared expert: GLM-4.5 to
4.7, dots.llm1, Solar-Open, Hy3."""

from dataclasses import replace

from .deepseek import BIASED_CHOICE, SHARED
from .family import Key, TensorNames

GLM4_MOE = BIASED_CHOICE(
    model_type="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    experts=("n_routed_experts", "num_local_experts"),
    shared_experts="n_shared_experts",
    qkv_bias=Key("attention_bias"),
    qk_norm="head",
    qk_norm_if=Key("use_qk_norm"),
    partial_rope=True,
    tensors=SHARED,
)
DOTS1 = replace(
    GLM4_MOE,
    model_type="dots1",
    architecture="Dots1ForCausalLM",
    output_bias=Key("attention_bias"),
    qk_norm_if=None,
    partial_rope=False,
    implied={"scoring_func": ("noaux_tc", "sigmoid", None)},
)
SOLAR_OPEN = replace(
    GLM4_MOE,
    model_type="solar_open",
    architecture="SolarOpenForCausalLM",
    dense_width=None,
    leading_dense=False,
    qk_norm="none",
    qk_norm_if=None,
    partial_rope=False,
    implied={"first_k_dense_replace": (0, None)},
    unused=("intermediate_size",),
)
# Its weights are always divided by their sum. Whether the shared expert is added in float32 decides about rounding.
HY_V3 = replace(
    GLM4_MOE,
    model_type="hy_v3",
    architecture="HYV3ForCausalLM",
    planned={"first_k_dense_replace": 1},
    experts=("num_experts", "num_local_experts"),
    shared_experts="num_shared_experts",
    grouped_choice=False,
    renormalise=True,
    weight_scale=Key("router_scaling_factor"),
    output_bias=Key("attention_bias"),
    qk_norm_if=None,
    partial_rope=False,
    unused=("enable_moe_fp32_combine",),
    tensors=TensorNames(
        router="mlp.router.gate.weight",
        choice_bias="mlp.expert_bias",
        shared_gate="mlp.shared_mlp.gate_proj.weight",
        shared_up="mlp.shared_mlp.up_proj.weight",
        shared_down="mlp.shared_mlp.down_proj.weight",
    ),
)
