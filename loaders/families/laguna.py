"""Laguna: numbers of heads layer by layer, two ropes, gates by a softplus on what heads give; a router whose choice is
biased beside a shared expert."""

from .deepseek import BIASED_CHOICE
from .family import Key, TensorNames

LAGUNA = BIASED_CHOICE(
    model_type="laguna",
    architecture="LagunaForCausalLM",
    planned={"first_k_dense_replace": 1},
    experts=("num_experts", "num_local_experts"),
    shared_width="shared_expert_intermediate_size",
    grouped_choice=False,
    renormalise=True,
    weight_scale=Key("moe_routed_scaling_factor"),
    qkv_bias=Key("attention_bias", False),
    output_bias=Key("attention_bias", False),
    qk_norm="head",
    windowed=True,
    by_kind=True,
    head_gate="softplus",
    implied={
        "moe_apply_router_weight_on_input": (False, None),
        "moe_router_logit_softcapping": (0, None),
        "qkv_bias": (False, None),
    },
    unused=("decoder_sparse_step", "gating_types", "mlp_only_layers"),  # which others say again
    tensors=TensorNames(
        attn_gate="self_attn.g_proj.weight",
        choice_bias="mlp.experts.e_score_correction_bias",
    ),
)
