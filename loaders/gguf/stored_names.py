"""Names of the tensors of a GGUF model. They are nearly the same in every arch; where archs and ages of converters
differ, what is in the file decides."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ..families.family import (
    CompressedNames,
    ConvNames,
    DeltaNames,
    GramsNames,
    LatentNames,
    SpaceNames,
    TensorNames,
)

NAMES = TensorNames(
    embed="token_embd.weight", final_norm="output_norm.weight", head="output.weight", layer="blk.{layer}.",
    attn_norm="attn_norm.weight", mlp_norm="ffn_norm.weight", attn_norm_bias="attn_norm.bias",
    mlp_norm_bias="ffn_norm.bias", final_norm_bias="output_norm.bias", head_bias="output.bias",
    q="attn_q", k="attn_k", v="attn_v", o="attn_output", q_norm="attn_q_norm.weight", k_norm="attn_k_norm.weight",
    router="ffn_gate_inp.weight",
    expert_gate="ffn_gate_exps.weight", expert_up="ffn_up_exps.weight", expert_down="ffn_down_exps.weight",
    experts_in="ffn_latent_down.weight", experts_back="ffn_latent_up.weight",
    mlp_gate="ffn_gate.weight", mlp_up="ffn_up.weight", mlp_down="ffn_down.weight",
    shared_gate="ffn_gate_shexp.weight", shared_up="ffn_up_shexp.weight", shared_down="ffn_down_shexp.weight",
    shared_expert_gate="ffn_gate_inp_shexp.weight",
    sinks="attn_sinks.weight", router_bias="ffn_gate_inp.bias", choice_bias="exp_probs_b.bias",
    conv=ConvNames(rows="shortconv.in_proj", conv="shortconv.conv", conv_is_deep=False, o="shortconv.out_proj"),
    space=SpaceNames(
        rows="ssm_in", conv="ssm_conv1d", conv_is_deep=False, rate="ssm_a", rate_is_log=False, dt_bias="ssm_dt.bias",
        skip="ssm_d", norm="ssm_norm.weight", o="ssm_out", in_columns=True,
    ),
    compressed=CompressedNames(
        q_a="attn_q_a.weight", q_a_norm="attn_q_a_norm.weight", q="attn_q_b.weight", k="attn_kv.weight",
        k_norm="attn_kv_a_norm.weight", o_a="attn_output_a.weight", o="attn_output_b.weight",
        sinks="attn_sinks.weight", entries="attn_compressor_", index_entries="indexer_compressor_", made="kv.weight",
        weighed="gate.weight", places="ape.weight", index_q="indexer.attn_q_b.weight",
        index_weights="indexer.proj.weight",
    ),
    expert_table="ffn_gate_tid2eid.weight",
    expert_gate_bias="ffn_gate_exps.bias", expert_up_bias="ffn_up_exps.bias", expert_down_bias="ffn_down_exps.bias",
    mtp_project="nextn.eh_proj.weight", mtp_embed_norm="nextn.enorm.weight", mtp_hidden_norm="nextn.hnorm.weight",
    mtp_norm="nextn.shared_head_norm.weight",
    block_q="indexer.q_proj.weight", block_k="indexer.k_proj.weight", block_q_norm="indexer.q_norm.weight",
    block_k_norm="indexer.k_norm.weight",
    mixings=("hc_attn_{}.weight", "hc_ffn_{}.weight"), last_mixing="output_hc_{}.weight",
    gates=("down", "up", "inject"),
    fittings=(("attn_res_score.weight", ""), ("ffn_res_score.weight", "")),
    last_fitting=("output_res_score.weight", ""),
    grams=GramsNames(
        whole="per_layer_token_embd.weight", key="ple_key.weight", value="ple_value.weight",
        key_norm="ple_norm_key.weight", query_norm="ple_norm_query.weight", conv_norm="ple_norm_conv.weight",
        conv="ple_conv1d.weight", conv_is_deep=False,
    ),
)  # fmt: skip
FUSED = "ffn_gate_up_exps.weight"
EMBED_NORM = "token_embd_norm.weight"  # what the final norm is called where it stood in front of the head alone
CHOICE = "exp_probs_b"  # the bias of a choice, as Hy3's converter calls it
POST_NORM = "post_attention_norm.weight"
ATTN_GATE = "attn_gate.weight"  # of what heads give; beside a delta rule another gate
STREAM_NORM = "hc_attn_norm.weight"  # of gated residual streams, in place of a layer's norm
ROUTED_IN = "ffn_routed_down.weight"  # of experts on a narrower latent, what it is called in Kimi-K3
EXPERTS_IN = "pre_ffw_norm_2.weight"  # in front of the experts of layers with norms of each part's own
LATENT = LatentNames(
    q="attn_q", q_a="attn_q_a", q_a_norm="attn_q_a_norm.weight", q_b="attn_q_b", kv_a="attn_kv_a_mqa",
    kv_a_norm="attn_kv_a_norm.weight", kv_b=None, k_up="attn_k_b", v_up="attn_v_b", o="attn_output",
    gate="attn_gate.weight",
    index_q="indexer.attn_q_b.weight", index_k="indexer.attn_k.weight", index_norm="indexer.k_norm.weight",
    index_bias="indexer.k_norm.bias", index_weights="indexer.proj.weight",
    index_gate="indexer_compressor_gate.weight", index_places="indexer_compressor_ape.weight",
)  # fmt: skip
DELTA = DeltaNames(
    qkv="attn_qkv.weight", z="attn_gate.weight", b="ssm_beta.weight", a="ssm_alpha.weight", conv="ssm_conv1d.weight",
    conv_is_deep=False, rate="ssm_a", rate_is_log=False, dt_bias="ssm_dt.bias", norm="ssm_norm.weight",
    o="ssm_out.weight",
)  # fmt: skip

# With decays by key; its other names are those of latent attention, and theirs where both have a tensor.
KEY_DELTA = replace(
    DELTA, apart=("attn_q.weight", "attn_k.weight", "attn_v.weight"),
    convs=("ssm_conv1d_q.weight", "ssm_conv1d_k.weight", "ssm_conv1d_v.weight"), z="ssm_g_b.weight",
    z_low="ssm_g_a.weight", decay_low="ssm_f_a.weight", decay="ssm_f_b.weight", o="attn_output.weight",
)  # fmt: skip


def names_of(found: Collection[str]) -> TensorNames:
    """The names of this file's tensors."""
    ends = {name.split(".", 2)[-1] for name in found if name.startswith("blk.")}
    names = replace(NAMES, latent=_latent(ends), delta=_delta(ends))
    if ROUTED_IN in ends:
        names = replace(
            names, experts_in=ROUTED_IN, experts_back="ffn_routed_up.weight", latent_norm="ffn_routed_norm.weight"
        )
    if CHOICE in ends:
        names = replace(names, choice_bias=CHOICE)
    if POST_NORM in ends and NAMES.mlp_norm not in ends:
        names = replace(names, mlp_norm=POST_NORM)
    if ATTN_GATE in ends and not any(end.startswith("ssm_") for end in ends):
        names = replace(names, attn_gate=ATTN_GATE)
    if EMBED_NORM in found and NAMES.final_norm not in found:
        names = replace(names, final_norm=EMBED_NORM)
    if STREAM_NORM in ends:
        names = replace(names, attn_norm=STREAM_NORM, mlp_norm="hc_ffn_norm.weight", final_norm="output_hc_norm.weight")
    if EXPERTS_IN in ends:
        names = _own_norms(names)
    return _experts(names, ends)


def _own_norms(names: TensorNames) -> TensorNames:
    """With norms of each part's own; the MLP beside the experts has the names of a dense one."""
    return replace(
        names, mlp_norm=EXPERTS_IN, out_norm=POST_NORM, mlp_in="ffn_norm.weight", mlp_out="post_ffw_norm_1.weight",
        experts_out="post_ffw_norm_2.weight", ffn_out="post_ffw_norm.weight", layer_scale="layer_output_scale.weight",
        router_norm="ffn_gate_inp.scale", factors="ffn_down_exps.scale", shared_gate=names.mlp_gate,
        shared_up=names.mlp_up, shared_down=names.mlp_down,
    )  # fmt: skip


def _experts(names: TensorNames, ends: Collection[str]) -> TensorNames:
    """Experts all in one tensor, gate and up fused, or each on its own (older)."""
    if FUSED in ends:
        return replace(names, fused_gate_up=FUSED, expert_gate=None, expert_up=None)
    if "ffn_gate.0.weight" in ends:
        gate, up, down = (f"ffn_{part}.{{e}}.weight" for part in ("gate", "up", "down"))
        return replace(names, expert_gate=gate, expert_up=up, expert_down=down)
    return names


def _latent(ends: Collection[str]) -> LatentNames:
    """The up-projections in one tensor in older files."""
    if "attn_kv_b.weight" in ends:
        return replace(LATENT, kv_b="attn_kv_b")
    return LATENT


def _delta(ends: Collection[str]) -> DeltaNames:
    """Strength and decay of a change in one tensor, as Qwen3-Next has them; in its oldest files queries, keys, values
    and gates too."""
    if "ssm_f_b.weight" in ends:
        return replace(KEY_DELTA, z="ssm_g.weight") if "ssm_g.weight" in ends else KEY_DELTA
    names = replace(DELTA, ba="ssm_ba.weight") if "ssm_ba.weight" in ends else DELTA
    return replace(names, qkvz="ssm_in.weight") if "ssm_in.weight" in ends else names
