"""Kimi-Linear: delta rules with decays by key, latent attention without positions among them, and experts as
DeepSeek-V3's."""

from dataclasses import replace

from .deepseek import DEEPSEEK_V3
from .family import DeltaNames, Key
from .mixtral import BLOCK_SPARSE

# Of delta rules with decays by key.
KEY_DELTA = DeltaNames(
    apart=("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    convs=("self_attn.q_conv1d.weight", "self_attn.k_conv1d.weight", "self_attn.v_conv1d.weight"),
    z="self_attn.g_b_proj.weight",
    b="self_attn.b_proj.weight",
    rate="self_attn.A_log",
    dt_bias="self_attn.dt_bias",
    norm="self_attn.o_norm.weight",
    o="self_attn.o_proj.weight",
)

KIMI_LINEAR = replace(
    DEEPSEEK_V3,
    model_type="kimi_linear",
    architecture="KimiLinearForCausalLM",
    planned={"first_k_dense_replace": 1},
    mixer="latent and delta",
    context="model_max_length",
    experts=("num_experts", "num_local_experts"),
    top_k="num_experts_per_token",
    shared_experts="num_shared_experts",
    renormalise=Key("moe_renormalize"),
    groups="num_expert_group",
    unused=("use_grouped_topk",),
    tensors=replace(
        BLOCK_SPARSE,
        choice_bias="block_sparse_moe.gate.e_score_correction_bias",
        shared_gate="block_sparse_moe.shared_experts.gate_proj.weight",
        shared_up="block_sparse_moe.shared_experts.up_proj.weight",
        shared_down="block_sparse_moe.shared_experts.down_proj.weight",
        delta=KEY_DELTA,
    ),
)
