"""DeepSeek-V4 as llama.cpp's converter writes it: names of tensors and metadata. The gguf package does not know the
arch yet, so both are written out here."""

from __future__ import annotations

import re
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
ARCHS = {"deepseek_v4": "deepseek4"}
OUTSIDE = {
    "embed.weight": "token_embd.weight", "norm.weight": "output_norm.weight", "head.weight": "output.weight",
    **{f"hc_head_{part}": f"output_hc_{part}.weight" for part in ("fn", "base", "scale")},
}  # fmt: skip
OF_LAYER = {
    "attn_norm": "attn_norm", "ffn_norm": "ffn_norm", "attn.wq_a": "attn_q_a", "attn.q_norm": "attn_q_a_norm",
    "attn.wq_b": "attn_q_b", "attn.wkv": "attn_kv", "attn.kv_norm": "attn_kv_a_norm", "attn.wo_a": "attn_output_a",
    "attn.wo_b": "attn_output_b", "attn.attn_sink": "attn_sinks", "attn.compressor.wkv": "attn_compressor_kv",
    "attn.compressor.wgate": "attn_compressor_gate", "attn.compressor.ape": "attn_compressor_ape",
    "attn.compressor.norm": "attn_compressor_norm", "attn.indexer.wq_b": "indexer.attn_q_b",
    "attn.indexer.weights_proj": "indexer.proj", "attn.indexer.compressor.wkv": "indexer_compressor_kv",
    "attn.indexer.compressor.wgate": "indexer_compressor_gate", "attn.indexer.compressor.ape": "indexer_compressor_ape",
    "attn.indexer.compressor.norm": "indexer_compressor_norm", "ffn.gate": "ffn_gate_inp",
    "ffn.gate.tid2eid": "ffn_gate_tid2eid", "ffn.experts.w1": "ffn_gate_exps", "ffn.experts.w2": "ffn_down_exps",
    "ffn.experts.w3": "ffn_up_exps", "ffn.shared_experts.w1": "ffn_gate_shexp",
    "ffn.shared_experts.w2": "ffn_down_shexp", "ffn.shared_experts.w3": "ffn_up_shexp",
    **{f"hc_{part}_{own}": f"hc_{part}_{own}" for part in ("attn", "ffn") for own in ("fn", "base", "scale")},
}  # fmt: skip
RATIOS = {"sliding_attention": 0, "compressed_sparse_attention": 4, "heavily_compressed_attention": 128}


def changed(stored: dict[str, Array]) -> dict[str, Array]:
    """Tensors by their names in files; tables of experts are whole numbers."""
    found: dict[str, Array] = {}
    for name, values in stored.items():
        if name in OUTSIDE:
            found[OUTSIDE[name]] = values
            continue
        its = re.fullmatch(r"layers\.(\d+)\.(.+?)(?:\.weight|(\.bias))?", name)
        assert its is not None, name
        rest = "exp_probs_b.bias" if its[3] else f"{OF_LAYER[its[2]]}.weight"
        is_table = name.endswith("tid2eid")
        found[f"blk.{its[1]}.{rest}"] = values.astype(np.int32) if is_table else values
    return {name: np.ascontiguousarray(values) for name, values in found.items()}


def add_metadata(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any]) -> None:
    """All of them but the tokenizer's."""
    layers = config["num_hidden_layers"]
    numbers = {
        "block_count": layers, "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"], "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": 1, "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"], "rope.dimension_count": config["qk_rope_head_dim"],
        "attention.q_lora_rank": config["q_lora_rank"], "attention.sliding_window": config["sliding_window"],
        "expert_count": config["n_routed_experts"], "expert_used_count": config["num_experts_per_tok"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_shared_count": config["n_shared_experts"], "expert_gating_func": 4,
        "attention.indexer.head_count": config["index_n_heads"],
        "attention.indexer.key_length": config["index_head_dim"], "attention.indexer.top_k": config["index_topk"],
        "attention.output_group_count": config["o_groups"], "attention.output_lora_rank": config["o_lora_rank"],
        "hyper_connection.count": config["hc_mult"],
        "hyper_connection.sinkhorn_iterations": config["hc_sinkhorn_iters"],
        "hash_layer_count": config["mlp_layer_types"].count("hash_moe"),
    }  # fmt: skip
    for name, number in numbers.items():
        writer.add_uint32(f"{arch}.{name}", number)
    ropes = config["rope_parameters"]
    reals = {
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"], "hyper_connection.epsilon": config["hc_eps"],
        "expert_weights_scale": config["routed_scaling_factor"], "rope.freq_base": ropes["main"]["rope_theta"],
        "attention.compress_rope_freq_base": ropes["compress"]["rope_theta"],
    }  # fmt: skip
    if ropes["compress"]["rope_type"] == "yarn":
        writer.add_string(f"{arch}.rope.scaling.type", "yarn")
        reals["rope.scaling.factor"] = ropes["compress"]["factor"]
        trained = ropes["compress"]["original_max_position_embeddings"]
        writer.add_uint32(f"{arch}.rope.scaling.original_context_length", trained)
    for name, real in reals.items():
        writer.add_float32(f"{arch}.{name}", real)
    writer.add_bool(f"{arch}.expert_weights_norm", True)
    for name in ("swiglu_clamp_exp", "swiglu_clamp_shexp"):
        writer.add_array(f"{arch}.{name}", [float(config["swiglu_limit"])] * layers)
    ratios = [RATIOS[kind] for kind in config["layer_types"]]
    writer.add_array(f"{arch}.attention.compress_ratios", [*ratios, 0])
