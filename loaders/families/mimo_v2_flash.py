"""MiMo-V2-Flash: values narrower than keys, and scaled; most layers over a short window, with twice the heads of keys,
another rope, and sinks; a router whose choice is biased, without a shared expert."""

from __future__ import annotations

from typing import Any

from . import by_kind
from .config_reader import ConfigReader
from .deepseek import BIASED_CHOICE
from .family import Key, TensorNames
from .window import FULL, SLIDING

REPLACED = (
    "hybrid_layer_pattern", "moe_layer_freq", "rope_theta", "swa_rope_theta", "partial_rotary_factor",
    "sliding_window_size", "layernorm_epsilon", "swa_head_dim", "swa_v_head_dim", "swa_num_attention_heads",
)  # fmt: skip


def todays(config: ConfigReader) -> dict[str, Any]:
    """The release's keys as transformers writes them."""
    for name, of in (("swa_head_dim", "head_dim"), ("swa_v_head_dim", "v_head_dim"),
                     ("swa_num_attention_heads", "num_attention_heads")):  # fmt: skip
        by_kind.same(config, name, of)
    values = by_kind.without(config.values, REPLACED)
    config.get(*REPLACED)
    turned = {"partial_rotary_factor": config.get("partial_rotary_factor")}
    values["rope_parameters"] = by_kind.ropes(
        config,
        {FULL: {**turned, "rope_theta": config.get("rope_theta")},
         SLIDING: {**turned, "rope_theta": config.get("swa_rope_theta")}},
    )  # fmt: skip
    if values.get("rms_norm_eps") is None:
        values["rms_norm_eps"] = config.get("layernorm_epsilon")
    if values.get("swa_num_key_value_heads") is None:  # the library's own configs leave it out
        values["swa_num_key_value_heads"] = 2 * config.integer("num_key_value_heads")
    if values.get("routed_scaling_factor") is None:
        values["routed_scaling_factor"] = 1.0
    for name, to, (no, yes) in (
        ("hybrid_layer_pattern", "layer_types", (FULL, SLIDING)),
        ("moe_layer_freq", "mlp_layer_types", ("dense", "sparse")),
    ):
        if isinstance(pattern := config.get(name), list):
            values[to] = [yes if one else no for one in pattern]
    if (before := config.get("sliding_window_size")) is not None:
        values["sliding_window"] = config.integer("sliding_window_size") + 1
        config.notes.append(f"sliding_window_size: a token sees itself and the {before} before it, as in transformers")
    return values


MIMO_V2_FLASH = BIASED_CHOICE(
    model_type="mimo_v2_flash",
    architecture="MiMoV2FlashForCausalLM",
    planned={"first_k_dense_replace": 1},
    experts=("n_routed_experts", "num_local_experts"),
    windowed=True,
    by_kind=True,
    partial_rope=True,
    sinks=True,
    qkv_bias=Key("attention_bias", False),
    v_dim="v_head_dim",
    v_scale=Key("attention_value_scale"),
    spelling=todays,
    mtp_dense=True,
    mtp_windowed=True,
    implied={
        "add_full_attention_sink_bias": (False, None),
        "add_swa_attention_sink_bias": (True, None),
        "n_shared_experts": (0, None),
    },
    unused=("attention_chunk_size", "attention_projection_layout", "hybrid_block_size", "moe_router_dtype"),
    tensors=TensorNames(sinks="self_attn.attention_sink_bias"),
)
