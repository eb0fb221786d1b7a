"""The metadata that llama.cpp's converter writes for Llama 4, Phi-3.5-MoE and Mistral 4, and what it does to their
tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Named = Iterator[tuple[str, NDArray[np.float32]]]
ARCHS = {"llama4_text": "llama4", "phimoe": "phimoe", "mistral4": "mistral4"}


def _stretching(config: dict[str, Any]) -> float:
    """What longrope multiplies cos and sin by, in the converter's eyes, whatever the config says."""
    trained = config["rope_parameters"]["original_max_position_embeddings"]
    return math.sqrt(1 + math.log(config["max_position_embeddings"] / trained) / math.log(trained))


def longrope(rope: dict[str, Any]) -> dict[str, Any]:
    """Settings of a rope with two sets of factors that a file can hold, for a context of 256."""
    rope = {**rope, "original_max_position_embeddings": 64}
    grown = _stretching({"rope_parameters": rope, "max_position_embeddings": 256})
    return {**rope, "short_mscale": grown, "long_mscale": grown}


def add(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any]) -> None:
    """Those of Llama 4 and Phi-3.5-MoE but the tokenizer's."""
    head_dim, rope = (
        config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        config["rope_parameters"],
    )
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    if arch == "llama4":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_feed_forward_length(config["intermediate_size_mlp"])
        writer.add_expert_feed_forward_length(config["intermediate_size"])
        writer.add_interleave_moe_layer_step(config["interleave_moe_layer_step"])
        writer.add_sliding_window(config["attention_chunk_size"])  # left out where it is 8192, as in all releases
        return
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_sliding_window(config.get("sliding_window") or 0)
    if "long_factor" in rope:
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(_stretching(config))


def add_temperature(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """Of Mistral 4, as files say it that are made of Mistral's own format."""
    writer.add_attn_temperature_scale(config["rope_parameters"]["llama_4_scaling_beta"])
    writer.add_attn_temperature_length(config["rope_parameters"]["original_max_position_embeddings"])


def factors(config: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Tensors of what frequencies are divided by."""
    rope = config["rope_parameters"]
    if rope.get("rope_type") == "llama3":
        return {"rope_freqs.weight": _llama3(config, rope)}
    return {
        f"rope_factors_{name}.weight": np.array(rope[f"{name}_factor"], dtype=np.float32)
        for name in ("long", "short")
        if f"{name}_factor" in rope
    }


def _llama3(config: dict[str, Any], rope: dict[str, Any]) -> NDArray[np.float32]:
    """Both bounds are alike: pairs turn slower or they do not."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    assert low == high, "blended factors"
    turns = np.arange(0, config["head_dim"], 2, dtype=np.float32) / config["head_dim"]
    waves = 2 * math.pi * rope["rope_theta"] ** turns
    slow = waves > rope["original_max_position_embeddings"] / low
    return np.where(slow, rope["factor"], 1.0).astype(np.float32)


def llama4(_: dict[str, Any], name: str, values: NDArray[np.float32]) -> Named:
    """Experts lie rows first, gate and up apart."""
    if name.endswith("experts.gate_up_proj"):
        rows = values.swapaxes(1, 2)
        half = rows.shape[1] // 2
        yield name.replace("gate_up_proj", "gate_proj.weight"), rows[:, :half]
        yield name.replace("gate_up_proj", "up_proj.weight"), rows[:, half:]
    elif name.endswith("experts.down_proj"):
        yield name + ".weight", values.swapaxes(1, 2)
    else:
        yield name, values
