"""MiniMax-M3, GLM-5.3-Flash, Qwen3.8-Flash-Next, Kimi-K3 and Hy3 as llama.cpp's converter writes them: names, which the
gguf package has no table of yet, metadata, and what becomes of tensors that no other family has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

Array = NDArray[np.float32]
Named = Iterator[tuple[str, Array]]
ARCHS = {"minimax_m3_vl_text": "minimax-m3", "glm5_next_text": "glm5-next", "qwen4_exp_text": "qwen4exp",
         "kimi_k3": "kimi-k3", "hy_v3": "hy_v3"}  # fmt: skip
OUTSIDE = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output",
           "output_attn_res": "output_res_score"}  # fmt: skip
STREAMS = {"hc_norm": "norm", "input_mix_weight_down": "down", "input_mix_weight_up": "up", "block_inject_weight":
           "inject"}  # fmt: skip
LAYER = re.compile(r"(?:model\.)?(?:language_model\.)?layers\.(\d+)\.(.*)")
HASHES = "ple.ple_embedding."
ROLES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp", "mlp.gate.e_score_correction": "exp_probs_b",
    "block_sparse_moe.e_score_correction": "exp_probs_b", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "block_sparse_moe.experts.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.w3": "ffn_up_exps", "block_sparse_moe.experts.w2": "ffn_down_exps",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "self_attn.index_q_proj": "indexer.q_proj", "self_attn.index_k_proj": "indexer.k_proj",
    "self_attn.index_q_norm": "indexer.q_norm", "self_attn.index_k_norm": "indexer.k_norm",
    "self_attn.indexer.q_layernorm": "indexer.q_norm", "self_attn.indexer.k_layernorm": "indexer.k_norm",
    "self_attn.q_conv1d": "ssm_conv1d_q", "self_attn.k_conv1d": "ssm_conv1d_k", "self_attn.v_conv1d": "ssm_conv1d_v",
    "self_attn.f_a_proj": "ssm_f_a", "self_attn.f_b_proj": "ssm_f_b", "self_attn.g_a_proj": "ssm_g_a",
    "self_attn.g_b_proj": "ssm_g_b", "self_attn.b_proj": "ssm_beta", "self_attn.A_log": "ssm_a",
    "self_attn.dt_proj": "ssm_dt", "self_attn.o_norm": "ssm_norm", "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm", "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.k_b_proj": "attn_k_b", "self_attn.v_b_proj": "attn_v_b", "self_attn.indexer.wq_b": "indexer.attn_q_b",
    "self_attn.indexer.wk": "indexer.attn_k", "self_attn.indexer.k_norm": "indexer.k_norm",
    "self_attn.indexer.weights_proj": "indexer.proj",
    "self_attn.indexer.index_kpool_compress_gate": "indexer_compressor_gate",
    "self_attn.indexer.index_kpool_compress_ape": "indexer_compressor_ape",
    "linear_attn.in_proj_qkv": "attn_qkv", "linear_attn.in_proj_z": "attn_gate", "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.in_proj_b": "ssm_beta", "linear_attn.A_log": "ssm_a", "linear_attn.dt_proj": "ssm_dt",
    "linear_attn.conv1d": "ssm_conv1d", "linear_attn.norm": "ssm_norm", "linear_attn.out_proj": "ssm_out",
    "self_attn.g_proj": "ssm_g", "block_sparse_moe.routed_expert_down_proj": "ffn_routed_down",
    "block_sparse_moe.routed_expert_up_proj": "ffn_routed_up", "block_sparse_moe.routed_expert_norm": "ffn_routed_norm",
    "block_sparse_moe.gate.e_score_correction": "exp_probs_b", "self_attn.gate_of_values": "attn_gate",
    "self_attention_res": "attn_res_score", "mlp_res": "ffn_res_score", "ple.key_proj": "ple_key",
    "ple.value_proj": "ple_value", "ple.norm_key": "ple_norm_key",
    "ple.norm_query": "ple_norm_query", "ple.norm_conv": "ple_norm_conv", "ple.conv1d": "ple_conv1d",
    **{f"hc_{part}_{one}": f"hc_{part}_{one}" for part in ("attn", "ffn") for one in ("fn", "base", "scale")},
    **{f"{place}_hyper_connection.{one}": f"hc_{part}_{its}" for place, part in (("attn", "attn"), ("mlp", "ffn"))
       for one, its in STREAMS.items()},
    **{f"{module}.{part}_proj": f"ffn_{part}_shexp" for part in ("gate", "up", "down")
       for module in ("mlp.shared_expert", "mlp.shared_experts", "block_sparse_moe.shared_experts")},
    **{f"mlp.shared_mlp.{part}_proj": f"ffn_{part}_shexp" for part in ("gate", "up", "down")},
    "mlp.router.gate": "ffn_gate_inp", "mlp.expert_bias": "exp_probs_b",
    **{f"mlp.experts.{part}_proj": f"ffn_{part}_exps" for part in ("gate", "up", "down")},
}  # fmt: skip


class Names:
    """As the gguf package's table of an arch."""

    def get_name(self, name: str, try_suffixes: Sequence[str] = ()) -> str | None:
        """The name in a file, with the same ending."""
        stem, end = next(((name[: -len(one)], one) for one in try_suffixes if name.endswith(one)), (name, ""))
        if layer := LAYER.fullmatch(stem):
            return f"blk.{layer[1]}.{ROLES[layer[2]]}{end}" if layer[2] in ROLES else None
        role = stem.rpartition(".")[2]
        if "hyper_connection_mixer" in stem:
            return f"output_hc_{STREAMS[role]}{end}"
        return name if name.startswith("per_layer") else f"{OUTSIDE[role]}{end}"


def minimax_m3(_: dict[str, Any], name: str, values: Array) -> Named:
    """Norms with the one that is added."""
    if name.endswith("e_score_correction_bias"):
        yield name.replace("_bias", ".bias"), values
    else:
        yield name, values + 1 if name.endswith("norm.weight") else values


def glm5_own(name: str, values: Array) -> Named | None:
    """What mixes streams and weighs keys of a run are weights; rates have a dim of their own alone."""
    if re.search(r"\.(hc_(attn|ffn)_(fn|base|scale)|index_kpool_compress_(ape|gate))$", name):
        return iter([(name + ".weight", values)])
    return iter([(name, -np.exp(values))]) if name.endswith("A_log") else None


def qwen4_own(config: dict[str, Any], name: str, values: Array) -> Named | None:
    """Queries and keys of the indexer apart, its norms with the one that is added."""
    if name.endswith("index_qk_proj.weight"):
        rows, at = config["indexer_n_heads"] * config["indexer_head_dim"], name.replace("indexer.index_qk", "index_{}")
        return iter([(at.format("q"), values[:rows]), (at.format("k"), values[rows:])])
    if name.endswith(("q_layernorm.weight", "k_layernorm.weight")) or ".ple.norm_" in name:
        return iter([(name, values + 1)])
    return iter([(name, values[:, 0])]) if name.endswith(".ple.conv1d.weight") else None


def fused(stored: dict[str, Array]) -> dict[str, Array]:
    """What states of a residual stream fit to, norm and projection as one vector."""
    found = {name: values for name, values in stored.items() if "_res_" not in name}
    for name in stored:
        if name.endswith("_res_norm.weight"):
            both = stored[name] * stored[name.replace("_norm.", "_proj.")].reshape(-1)
            found[name.replace("_norm.", ".")] = both
    return found


def kimi_k3_own(config: dict[str, Any], name: str, values: Array) -> Named | None:
    """Gates of latents and of delta rules have a name of their own; rates a dim of theirs alone."""
    if (
        name.endswith("g_proj.weight")
        and int(name.split(".")[2]) + 1 in config["linear_attn_config"]["full_attn_layers"]
    ):
        return iter([(name.replace("g_proj", "gate_of_values"), values)])
    return iter([(name, -np.exp(values))]) if name.endswith("A_log") else None


def with_table(config: dict[str, Any], directory: Path, stored: dict[str, Array]) -> dict[str, Array]:
    """The parts of a table of runs of tokens as one, and what hashes are made with in the config."""
    table = {int(n.split("shard_")[1].split(".")[0]): v for n, v in stored.items() if "ngram_embedding" in n}
    whole = safetensors.torch.load_file(directory / "model.safetensors")
    ints = {name.split(HASHES)[1]: values for name, values in whole.items() if values.dtype == torch.int64}
    config["hashes"] = {name: values.tolist() for name, values in ints.items()}
    found = {name: values for name, values in stored.items() if HASHES not in name}
    return found | {"per_layer_token_embd.weight": np.concatenate([table[i] for i in sorted(table)])}


def add_metadata(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any]) -> None:
    """What is said for these alone; tests/gguf/metadata/mixer_metadata.py says the rest."""
    {"minimax-m3": _minimax_m3, "glm5-next": _glm5, "qwen4exp": _qwen4, "kimi-k3": _kimi_k3, "hy_v3": _hy_v3}[arch](
        writer, arch, config
    )


def _indexer(writer: gguf.GGUFWriter, arch: str, heads: int, size: int, top: int) -> None:
    for name, value in (("head_count", heads), ("key_length", size), ("top_k", top)):
        writer.add_uint32(f"{arch}.attention.indexer.{name}", value)


def _minimax_m3(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any]) -> None:
    rope = config["rope_parameters"]
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(config["rotary_dim"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_expert_shared_count(1)
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(True)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_leading_dense_block_count(config["mlp_layer_types"].index("sparse"))
    _indexer(writer, arch, config["index_n_heads"], config["index_head_dim"], config["index_topk_blocks"])
    writer.add_uint32(f"{arch}.attention.indexer.block_size", config["index_block_size"])
    writer.add_uint32(f"{arch}.attention.indexer.local_blocks", config["index_local_blocks"])


def _hy_v3(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any]) -> None:
    width = config["moe_intermediate_size"]
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_expert_feed_forward_length(width)
    writer.add_expert_shared_feed_forward_length(width * config["num_shared_experts"])
    writer.add_expert_weights_norm(True)
    writer.add_expert_weights_scale(config["router_scaling_factor"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def _glm5(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any]) -> None:
    count = config["num_hidden_layers"]
    writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
    writer.add_kda_head_dim(config["linear_head_dim"])
    if config["linear_lower_bound"] is not None:
        writer.add_float32(f"{arch}.kda.gate_lower_bound", config["linear_lower_bound"])
    _indexer(writer, arch, config["index_n_heads"], config["index_head_dim"], config["index_topk"])
    writer.add_uint32(f"{arch}.attention.indexer.kpool", config["index_kpool"])
    writer.add_bool(f"{arch}.attention.indexer.kpool_select_tail", True)
    writer.add_array(f"{arch}.attention.indexer.types", [one == "full" for one in config["indexer_types"]])
    writer.add_uint32(f"{arch}.hyper_connection.count", config["hc_mult"])
    writer.add_uint32(f"{arch}.hyper_connection.sinkhorn_iterations", config["hc_sinkhorn_iters"])
    writer.add_float32(f"{arch}.hyper_connection.epsilon", config["hc_eps"])
    for name in ("swiglu_clamp_exp", "swiglu_clamp_shexp"):
        writer.add_array(f"{arch}.{name}", [float(config["swiglu_limit"])] * count)


def _kimi_k3(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any]) -> None:
    lin = config["linear_attn_config"]
    writer.add_ssm_conv_kernel(lin["short_conv_kernel_size"])
    writer.add_kda_head_dim(lin["head_dim"])
    if lin["gate_lower_bound"] is not None:
        writer.add_float32(f"{arch}.kda.gate_lower_bound", lin["gate_lower_bound"])
    writer.add_uint32(f"{arch}.expert_latent_length", config["routed_expert_hidden_size"])
    writer.add_uint32(f"{arch}.attn_res.block_size", config["attn_res_block_size"])
    writer.add_float32(f"{arch}.activation.situ_beta", config["activation_situ_beta"])
    writer.add_float32(f"{arch}.activation.situ_linear_beta", config["activation_situ_linear_beta"])


def _qwen4(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any]) -> None:
    rate, hashes = config["indexer_compress_ratio"], config["hashes"]
    writer.add_uint32(f"{arch}.hyper_connection.count", config["hc_count"])
    writer.add_uint32(f"{arch}.hyper_connection.low_rank", config["hc_lowrank"])
    _indexer(writer, arch, config["indexer_n_heads"], config["indexer_head_dim"], config["indexer_budget"])
    rates = [rate if kind == "indexed_attention" else 0 for kind in config["layer_types"]]
    writer.add_array(f"{arch}.attention.compress_ratios", rates)
    writer.add_array(f"{arch}.ple.layers", [number - 1 for number in config["ple_layer_ids"]])
    for key, name in (("ngram_size", "ngram_size"), ("heads_per_ngram", "heads_per_ngram"), ("conv_kernel",
                      "ple_conv_kernel_size"), ("eos_token_id", "eos_token_id")):  # fmt: skip
        writer.add_uint32(f"{arch}.ple.{key}", config[name])
    writer.add_embedding_length_per_layer_input(config["ple_embed_dim"] // len(hashes["ngram_heads_offsets"]))
    for key, name in (("layer_multipliers", "layer_multipliers"), ("head_offsets", "ngram_heads_offsets"),
                      ("head_vocab_sizes", "ngram_heads_vocab_sizes")):  # fmt: skip
        kinds = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT64
        writer.add_key_value(f"{arch}.ple.{key}", hashes[name], *kinds)
