"""Step-3.5-Flash, and the text model of Step-3.7-Flash: more heads and another rope in layers over a window, a gate for
each head, norms that count from 1, a biased choice of experts beside a shared one, limits of the last layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...kernels.recipes import Activation
from . import by_kind
from .config_reader import ConfigReader
from .deepseek import BIASED_CHOICE
from .family import Key, TensorNames
from .window import FULL, SLIDING

NEWER = {
    "num_attention_groups": "num_key_value_heads", "moe_num_experts": "n_routed_experts",
    "moe_top_k": "num_experts_per_tok", "share_expert_dims": "share_expert_dim",
}  # fmt: skip
BY_LAYER = ("rope_theta", "partial_rotary_factors")
REPLACED = (
    *NEWER, *BY_LAYER, "rope_scaling", "moe_layers_enum", "attention_other_setting", "per_layer_config",
    "query_pre_attn_scalar", "use_rope_layers", "yarn_only_types",
)  # fmt: skip


def todays(config: ConfigReader) -> dict[str, Any]:
    """The release's keys as transformers writes them."""
    config.get(*REPLACED)
    values = by_kind.without(config.values, REPLACED)
    for name, newer in NEWER.items():
        if values.get(newer) is None and config.get(name) is not None:
            values[newer] = config.get(name)
    count, kinds = config.integer("num_hidden_layers"), config.require("layer_types")
    if not isinstance(kinds, list) or len(kinds) < count:
        raise config.bad("layer_types", kinds, f"a list of {count} times {FULL} or {SLIDING}")
    values["rope_parameters"] = _ropes(config, kinds[:count])
    values["num_sliding_attention_heads"] = _heads_of_windows(config, values)
    if (sparse := config.get("moe_layers_enum")) is not None:
        values["mlp_layer_types"] = ["sparse" if i in _numbers(config, sparse) else "dense" for i in range(count)]
    scalar = config.get("query_pre_attn_scalar")
    if scalar not in (None, values.get("head_dim")):
        raise config.bad("query_pre_attn_scalar", scalar, f"head_dim = {values.get('head_dim')}")
    if not all(config.get("use_rope_layers") or [True]):
        raise config.bad("use_rope_layers", config.get("use_rope_layers"), "true for every layer")
    return values


def _numbers(config: ConfigReader, sparse: Any) -> set[int]:
    """The layers with experts, which releases write as text with commas."""
    try:
        return {int(one) for one in (sparse.split(",") if isinstance(sparse, str) else sparse) if str(one).strip()}
    except (TypeError, ValueError):
        raise config.bad("moe_layers_enum", sparse, "numbers of layers, with commas between") from None


def _ropes(config: ConfigReader, kinds: list[str]) -> dict[str, Any]:
    """Of each kind of layer the settings that its first layer has; a stretched context is that of layers that see
    everything."""
    found: dict[str, dict[str, Any]] = {}
    for kind, first in ((kind, kinds.index(kind)) for kind in dict.fromkeys(kinds)):
        theta, share = (_of_layer(config, name, kinds, first) for name in BY_LAYER)
        found[kind] = {"rope_theta": theta, "partial_rotary_factor": share}
    stretched = config.get("rope_scaling")
    if isinstance(stretched, dict) and FULL in found:
        if config.get("yarn_only_types") not in (None, [FULL]):
            raise config.bad("yarn_only_types", config.get("yarn_only_types"), f'["{FULL}"]')
        found[FULL] |= stretched
    return by_kind.ropes(config, found)


def _of_layer(config: ConfigReader, name: str, kinds: list[str], layer: int) -> Any:
    """A value that is given for each layer, and is the same for all of a kind; or one for all."""
    each = config.get(name)
    if not isinstance(each, list):
        return each
    own = [value for value, kind in zip(each, kinds, strict=False) if kind == kinds[layer]]
    if len(each) < len(kinds) or any(value != own[0] for value in own):
        raise config.bad(name, each, f"a list of {len(kinds)}, the same for layers of one kind")
    return own[0]


def _heads_of_windows(config: ConfigReader, values: dict[str, Any]) -> Any:
    """Heads of layers over a window, whose other sizes are those of the rest."""
    heads, other = values.get("num_sliding_attention_heads"), config.get("attention_other_setting") or {}
    wanted = {"num_attention_groups": values.get("num_key_value_heads"), "head_dim": values.get("head_dim")}
    if not isinstance(other, dict) or any(other.get(name) not in (None, size) for name, size in wanted.items()):
        raise config.bad("attention_other_setting", other, f"an object with {wanted}")
    heads = other.get("num_attention_heads") if heads is None else heads
    each = config.get("per_layer_config") or {}
    if any(one not in ({}, {"num_attention_heads": heads}) for one in each.values()):
        raise config.bad("per_layer_config", each, f"num_attention_heads = {heads} for layers over a window")
    return heads


STEP3P5 = BIASED_CHOICE(
    model_type="step3p5",
    architecture="Step3p5ForCausalLM",
    planned={"first_k_dense_replace": 3},
    experts=("n_routed_experts", "num_local_experts"),
    shared_width="share_expert_dim",
    grouped_choice=False,
    renormalise=True,
    weight_scale=Key("moe_router_scaling_factor"),
    activation=Activation(late=True),
    layer_limits=("swiglu_limits", "swiglu_limits_shared"),
    qk_norm="head",
    windowed=True,
    by_kind=True,
    head_gate="sigmoid",
    spelling=todays,
    mtp_dense=True,
    mtp_windowed=True,
    mtp_before_norm=True,
    implied={
        "att_impl_type": ("GQA", None),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "moe_every_n_layer": (1, None),
        "moe_layer_offset": (0, None),
        "moe_router_activation": ("sigmoid", None),
        "norm_expert_weight": (True, None),
        "sink": (False, None),
        "use_bidirectional_attention": (False, None),
        "use_head_wise_attn_gate": (True, None),
        "use_moe": (True, None),
        "use_moe_router_bias": (True, None),
        "zero_centered": (True, None),
    },
    unused=("need_fp32_gate", "norm_dtype", "mtp_layer_types", "mtp_mlp_layer_types"),
    tensors=TensorNames(
        attn_gate="self_attn.g_proj.weight",
        norms_from_one=True,
        router="moe.gate.weight",
        choice_bias="moe.router_bias",
        expert_gate="moe.gate_proj.weight",
        expert_up="moe.up_proj.weight",
        expert_down="moe.down_proj.weight",
        shared_gate="share_expert.gate_proj.weight",
        shared_up="share_expert.up_proj.weight",
        shared_down="share_expert.down_proj.weight",
    ),
)
STEP3P7 = replace(STEP3P5, model_type="step3p7", architecture="Step3p7ForConditionalGeneration")
