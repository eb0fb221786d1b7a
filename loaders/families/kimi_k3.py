"""Kimi-K3, the text model: as Kimi-Linear with decays that have a bound, gates of full rank, experts on a narrower
latent, an activation whose both sides are bent, and a residual stream whose earlier states are kept. Names are those
that llama.cpp's converter takes."""

from __future__ import annotations

from dataclasses import replace

from ...kernels.recipes import Activation
from .config_reader import ConfigReader
from .family import Key, LatentNames
from .kimi_linear import KEY_DELTA, KIMI_LINEAR


def activation(config: ConfigReader) -> Activation:
    """Of all MLPs; up is as it is where its bound is not above 0."""
    gate, up = config.number("activation_situ_beta"), config.get("activation_situ_linear_beta")
    off = up is None or (isinstance(up, int | float) and up <= 0)
    return Activation(bend=gate, bend_up=0.0 if off else config.number("activation_situ_linear_beta"))


KIMI_K3 = replace(
    KIMI_LINEAR,
    model_type="kimi_k3",
    architecture="KimiK3ForConditionalGeneration",
    mtp_gap="they have several residual streams",
    context="max_position_embeddings",
    expert_latent="routed_expert_hidden_size",
    latent_norm_eps=None,
    activation_names=("hidden_act", ("situ",)),
    bends=True,
    kept_streams=Key("attn_res_block_size"),
    tensors=replace(
        KIMI_LINEAR.tensors,
        experts_in="block_sparse_moe.routed_expert_down_proj.weight",
        experts_back="block_sparse_moe.routed_expert_up_proj.weight",
        latent_norm="block_sparse_moe.routed_expert_norm.weight",
        latent=LatentNames(gate="self_attn.g_proj.weight"),
        delta=replace(KEY_DELTA, z="self_attn.g_proj.weight"),
    ),
)
