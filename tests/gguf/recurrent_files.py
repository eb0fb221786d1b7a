"""What llama.cpp's converter does to tensors and metadata of LFM2-MoE, Granite 4.0 H and Nemotron-3, written from its
behaviour and not with the code that reads such files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gguf
import gguf_files
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Named = Iterator[tuple[str, Array]]
ARCHS = {"lfm2_moe": "lfm2moe", "granitemoehybrid": "granitehybrid", "nemotron_h": "nemotron_h_moe"}
ATTENDS = ("attention", "full_attention")


def layers_of(config: dict[str, Any]) -> list[str]:
    """The kind of each layer."""
    return list(config.get("layers_block_type") or config["layer_types"])


def changed(config: dict[str, Any], name: str, values: Array) -> Named:
    """A tensor as the converter stores it, under a name that the gguf package knows."""
    if name.endswith(("conv.conv.weight", "conv1d.weight")):
        yield name, values[:, 0]
    elif name.endswith(("expert_bias", "e_score_correction_bias")):
        yield name.replace("correction_bias", "correction.bias").replace("expert_bias", "expert_bias.bias"), values
    elif name.endswith(("q_proj.weight", "k_proj.weight")) and config["model_type"] != "lfm2_moe":
        heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
        yield name, gguf_files.paired(values, heads)
    elif name.endswith("A_log"):
        yield name, -np.exp(values)[:, None]
    elif name.endswith(".D"):
        yield name, values[:, None]
    elif name.endswith("dt_bias"):
        yield name.replace("dt_bias", "dt.bias" if "mixer" in name else "dt_proj.bias"), values
    elif name.endswith(("mamba.norm.weight", "mixer.norm.weight")):
        yield name, values.reshape(config.get("mamba_n_groups") or config["n_groups"], -1)
    elif name.endswith(("input_linear.weight", "output_linear.weight")):
        yield from _granite_mlp(name, values)
    else:
        yield _of_experts(name) if ".experts." in name else name, values


def _of_experts(name: str) -> str:
    """Experts' tensors that hold all of a layer have other names before they get those of GGUF."""
    if "mixer" in name:
        return name.replace("backbone.layers", "model.layers").replace("mixer.experts", "mlp.experts")
    return name.removeprefix("model.")


def _granite_mlp(name: str, values: Array) -> Named:
    """Gate and up apart, of all experts or of the shared one."""
    layer, _, rest = name.partition(".block_sparse_moe." if "block_sparse" in name else ".shared_mlp.")
    module = f"{layer}.mlp.experts" if "block_sparse" in name else f"{layer}.mlp.shared_experts"
    if rest.startswith("output"):
        yield f"{module}.down_proj.weight", values
        return
    axis = values.ndim - 2
    gate, up = np.split(values, 2, axis=axis)
    yield f"{module}.gate_proj.weight", gate
    yield f"{module}.up_proj.weight", up


def add_metadata(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any]) -> None:
    """All of them but the tokenizer's."""
    kinds = layers_of(config)
    writer.add_block_count(len(kinds))
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv([config["num_key_value_heads"] if kind in ATTENDS else 0 for kind in kinds])
    eps = ("rms_norm_eps", "norm_eps", "layer_norm_epsilon")
    writer.add_layer_norm_rms_eps(next(config[key] for key in eps if key in config))
    counts = ("num_local_experts", "num_experts", "n_routed_experts")
    writer.add_expert_count(next(config[key] for key in counts if config.get(key)))
    writer.add_expert_used_count(config["num_experts_per_tok"])
    {"lfm2moe": _lfm2, "granitehybrid": _granite, "nemotron_h_moe": _nemotron}[arch](writer, config)


def _lfm2(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_leading_dense_block_count(config["num_dense_layers"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_shortconv_l_cache(config["conv_L_cache"])


def _granite(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_attention_scale(config["attention_multiplier"])
    writer.add_embedding_scale(config["embedding_multiplier"])
    writer.add_residual_scale(config["residual_multiplier"])
    writer.add_logit_scale(config["logits_scaling"])
    writer.add_expert_shared_feed_forward_length(config["shared_intermediate_size"])
    writer.add_rope_scaling_finetuned(False)
    inner = config["mamba_n_heads"] * config["mamba_d_head"]
    _space(writer, config["mamba_d_conv"], config["mamba_d_state"], config["mamba_n_groups"], inner,
           config["mamba_n_heads"])  # fmt: skip


def _nemotron(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    width, kinds = config["moe_intermediate_size"], layers_of(config)
    writer.add_feed_forward_length([width if kind == "moe" else 0 for kind in kinds])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_expert_feed_forward_length(width)
    writer.add_expert_shared_feed_forward_length(config["moe_shared_expert_intermediate_size"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    if config.get("moe_latent_size"):
        writer.add_uint32("nemotron_h_moe.moe_latent_size", config["moe_latent_size"])
    writer.add_expert_group_count(config["n_group"])
    writer.add_rope_scaling_finetuned(False)
    inner = config["mamba_num_heads"] * config["mamba_head_dim"]
    _space(writer, config["conv_kernel"], config["ssm_state_size"], config["n_groups"], inner,
           config["mamba_num_heads"])  # fmt: skip


def _space(writer: gguf.GGUFWriter, taps: int, state: int, groups: int, inner: int, heads: int) -> None:
    writer.add_ssm_conv_kernel(taps)
    writer.add_ssm_state_size(state)
    writer.add_ssm_group_count(groups)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_time_step_rank(heads)
