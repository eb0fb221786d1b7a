"""Mistral-Small-4-119B: latent attention whose queries are the warmer the further back they look; a softmax router
beside a shared expert. The text model alone."""

from dataclasses import replace

from .deepseek import NORM_EPS, SHARED
from .family import Family, Key

MISTRAL4 = Family(
    model_type="mistral4",
    architecture="Mistral4ForCausalLM",
    mixer="latent",
    experts=("n_routed_experts", "num_local_experts"),
    expert_width="moe_intermediate_size",
    dense_width="intermediate_size",
    leading_dense=True,
    shared_experts="n_shared_experts",
    scoring="softmax",
    grouped_choice=True,
    renormalise=Key("norm_topk_prob"),
    weight_scale=Key("routed_scaling_factor"),
    latent_norm_eps=NORM_EPS,
    tensors=replace(
        SHARED,
        expert_gate=None,
        expert_up=None,
        fused_gate_up="mlp.experts.gate_up_proj",
        expert_down="mlp.experts.down_proj",
    ),
)
