"""Ling-3.0: delta rules whose decays by key have a bound, latent attention with a gate for each head, and experts as
DeepSeek-V3's."""

from dataclasses import replace

from .family import DeltaNames, LatentNames, TensorNames
from .kimi_linear import KIMI_LINEAR

BAILING_HYBRID = replace(
    KIMI_LINEAR,
    model_type="bailing_hybrid",
    architecture="BailingHybridForCausalLM",
    planned={"kda_lower_bound": -5.0},
    bounded_decay=True,
    unused=("mtp_loss_scaling_factor",),
    tensors=TensorNames(
        embed="model.word_embeddings.weight",
        choice_bias="mlp.gate.expert_bias",
        shared_gate="mlp.shared_experts.gate_proj.weight",
        shared_up="mlp.shared_experts.up_proj.weight",
        shared_down="mlp.shared_experts.down_proj.weight",
        latent=LatentNames(
            q="attention.q_proj",
            kv_a="attention.kv_a_proj_with_mqa",
            kv_a_norm="attention.kv_a_layernorm.weight",
            kv_b="attention.kv_b_proj",
            o="attention.dense",
            gate="attention.g_proj.weight",
        ),
        delta=DeltaNames(
            apart=("attention.q_proj.weight", "attention.k_proj.weight", "attention.v_proj.weight"),
            convs=("attention.q_conv1d.weight", "attention.k_conv1d.weight", "attention.v_conv1d.weight"),
            z="attention.g_proj.weight",
            b="attention.b_proj.weight",
            decay="attention.f_proj.weight",
            rate="attention.A_log",
            dt_bias="attention.dt_bias",
            norm="attention.o_norm.weight",
            o="attention.dense.weight",
        ),
    ),
)
