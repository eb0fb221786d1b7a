"""What every token goes through alone in each layer, from a config: routed experts and their router, or a dense MLP."""

from __future__ import annotations

from dataclasses import replace

from ...kernels.activation import Activation
from ..spec import DenseSpec, MoeSpec
from .config_reader import ConfigReader
from .family import Family
from .keys import MAX_EXPERTS, read_flag, read_scale

FfnSpec = MoeSpec | DenseSpec


def read_ffns(family: Family, config: ConfigReader, count: int) -> list[FfnSpec]:
    """Those of so many layers."""
    moe, has_experts = _read_moe(family, config), _read_layers(family, config, count)
    if all(has_experts):
        if family.dense_width:
            config.seen.add(family.dense_width)
        return [moe] * count
    assert family.dense_width is not None, "dense layers of a family without a width for them"
    dense = DenseSpec(width=config.integer(family.dense_width), activation=moe.activation)
    return [moe if routed else dense for routed in has_experts]


def _read_moe(family: Family, config: ConfigReader) -> MoeSpec:
    moe = MoeSpec(
        experts=config.integer(*family.experts, maximum=MAX_EXPERTS),
        top_k=config.integer("num_experts_per_tok"),
        width=config.integer(family.expert_width),
        scoring=family.scoring,
        renormalise=read_flag(config, family.renormalise),
        router_bias=family.router_bias,
        choice_bias=family.choice_bias,
        scale=read_scale(config, family.weight_scale),
        activation=_read_activation(family, config),
        expert_bias=family.expert_bias,
        shared_width=_shared_width(family, config),
        shared_gate=family.shared_gate,
    )
    if moe.top_k > moe.experts:
        raise config.bad("num_experts_per_tok", moe.top_k, f"at most the {moe.experts} experts there are")
    return _with_groups(family, config, moe) if family.grouped_choice else moe


def _with_groups(family: Family, config: ConfigReader, moe: MoeSpec) -> MoeSpec:
    """A router that chooses some groups of experts first; one group, or all of them, is a choice among all."""
    if config.get("topk_method") == "greedy":
        config.seen.update(("n_group", "topk_group"))
        return moe
    groups = 1 if config.get("n_group") is None else config.integer("n_group")
    open_groups = 1 if config.get("topk_group") is None else config.integer("topk_group")
    if moe.experts % groups:
        raise config.bad("n_group", groups, f"a divisor of the {moe.experts} experts")
    if not open_groups <= groups:
        raise config.bad("topk_group", open_groups, f"at most the {groups} groups there are")
    if moe.top_k > open_groups * (moe.experts // groups):
        raise config.bad("topk_group", open_groups, f"enough groups for {moe.top_k} experts")
    return replace(moe, groups=groups, top_groups=open_groups, group_score=family.group_score)


def _read_activation(family: Family, config: ConfigReader) -> Activation:
    key = family.activation_limit
    return family.activation if key is None else replace(family.activation, limit=config.number(key.name))


def _shared_width(family: Family, config: ConfigReader) -> int:
    if family.shared_width:
        return config.integer(family.shared_width)
    if family.shared_experts is None or not config.get(family.shared_experts):
        return 0
    return config.integer(family.shared_experts) * config.integer(family.expert_width)


def _read_layers(family: Family, config: ConfigReader, count: int) -> list[bool]:
    """Which layers have experts: all behind the first dense ones; or every `decoder_sparse_step`-th, but for
    `mlp_only_layers`."""
    if family.leading_dense:
        config.only("moe_layer_freq", (1, None))
        first = config.get("first_k_dense_replace")
        first = 0 if first == 0 else config.integer("first_k_dense_replace")
        return [i >= first for i in range(count)]
    if family.dense_width is None:
        return [True] * count
    step, dense = config.integer("decoder_sparse_step"), config.get("mlp_only_layers")
    dense = [] if dense is None else dense
    if not isinstance(dense, list) or not all(isinstance(i, int) for i in dense):
        raise config.bad("mlp_only_layers", dense, "a list of layer numbers")
    return [(i + 1) % step == 0 and i not in dense for i in range(count)]
