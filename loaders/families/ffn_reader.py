"""What every token goes through alone in each layer, from a config: routed experts and their router, or a dense MLP."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ...errors import ConfigError
from ...kernels.recipes import Activation
from ..spec import DenseSpec, MoeSpec
from . import deepseek_v4, kimi_k3, one_part
from .config_reader import ConfigReader
from .family import Family
from .keys import MAX_EXPERTS, read_flag, read_scale

NORMED = "routed_expert_normed"  # a GGUF file may have no norm behind experts on a narrower latent
FfnSpec = MoeSpec | DenseSpec | None


def read_ffns(family: Family, config: ConfigReader, count: int) -> list[FfnSpec]:
    """Those of so many layers."""
    moe = _read_moe(family, config)
    if family.one_part:
        return one_part.ffns(family, config, moe)
    if family.tables_of_experts:
        tables = deepseek_v4.by_token(config, count)
        return [replace(moe, by_token=one, choice_bias=not one) for one in tables]
    has_experts = _read_layers(family, config, count)
    if not any(has_experts):
        config.refuse(
            ConfigError(f"{config.source}: none of the {count} layers has experts: the engine runs models that do")
        )
    if all(has_experts):
        if family.dense_width:
            config.seen.add(family.dense_width)
        return _with_limits(family, config, [moe] * count)
    assert family.dense_width is not None, "dense layers of a family without a width for them"
    dense = DenseSpec(width=config.integer(family.dense_width), activation=moe.activation)
    return _with_limits(family, config, [moe if routed else dense for routed in has_experts])


def _with_limits(family: Family, config: ConfigReader, ffns: Sequence[MoeSpec | DenseSpec]) -> list[FfnSpec]:
    """The layers with what each one's experts, and its other MLP, are clamped to; 0 or null: nothing is."""
    if family.layer_limits is None:
        return list(ffns)
    of_experts, of_others = (_limits(config, name, len(ffns)) for name in family.layer_limits)
    found: list[FfnSpec] = []
    for ffn, limit, other in zip(ffns, of_experts, of_others, strict=True):
        beside = replace(ffn.activation, limit=other)
        if isinstance(ffn, MoeSpec):
            ffn = replace(ffn, activation=replace(ffn.activation, limit=limit), shared_activation=beside)
        else:
            ffn = replace(ffn, activation=beside)
        found.append(ffn)
    return found


def _limits(config: ConfigReader, name: str, count: int) -> list[float]:
    values = config.get(name)
    values = [None] * count if values is None else values
    if not isinstance(values, list) or len(values) < count:
        raise config.bad(name, values, f"a list with the limit of each of the {count} layers")
    return [config.positive(name, value) if value else math.inf for value in values[:count]]


def _read_moe(family: Family, config: ConfigReader) -> MoeSpec:
    moe = MoeSpec(
        experts=config.integer(*family.experts, maximum=MAX_EXPERTS),
        top_k=config.integer(family.top_k),
        width=config.integer(family.expert_width),
        scoring=family.scoring,
        renormalise=read_flag(config, family.renormalise),
        router_bias=family.router_bias,
        choice_bias=read_flag(config, family.choice_bias),
        scale=read_scale(config, family.weight_scale),
        activation=_read_activation(family, config),
        expert_bias=family.expert_bias,
        shared_width=_shared_width(family, config),
        shared_gate=family.shared_gate,
        factors=family.own_norms,
        weighs_input=family.weighs_input,
        jitter=_jitter(family, config),
        latent=_latent(family, config),
        latent_norm=family.bends and config.get(NORMED) is not False,
    )
    if moe.top_k > moe.experts:
        raise config.bad(family.top_k, moe.top_k, f"at most the {moe.experts} experts there are")
    return _with_groups(family, config, moe) if family.grouped_choice else moe


def _latent(family: Family, config: ConfigReader) -> int:
    """Dims that routed experts work on, 0 where those are the hidden state's."""
    if family.expert_latent is None or config.get(family.expert_latent) is None:
        return 0
    return config.integer(family.expert_latent)


def _with_groups(family: Family, config: ConfigReader, moe: MoeSpec) -> MoeSpec:
    """A router that chooses some groups of experts first; one group, or all of them, is a choice among all."""
    if config.values.get("topk_method") == "greedy":  # compared with the rest by `said_twice`
        config.seen.update((family.groups, "topk_group"))
        return moe
    groups = 1 if config.get(family.groups) is None else config.integer(family.groups)
    open_groups = 1 if config.get("topk_group") is None else config.integer("topk_group")
    if moe.experts % groups:
        config.refuse(config.bad(family.groups, groups, f"a divisor of the {moe.experts} experts"))
    elif not open_groups <= groups:
        config.refuse(config.bad("topk_group", open_groups, f"at most the {groups} groups there are"))
    elif moe.top_k > open_groups * (moe.experts // groups):
        config.refuse(config.bad("topk_group", open_groups, f"enough groups for {moe.top_k} experts"))
    return replace(moe, groups=groups, top_groups=open_groups, group_score=family.group_score)


def _jitter(family: Family, config: ConfigReader) -> float:
    key = family.jitter
    if key is None:
        return 0.0
    return float(key.default) if config.get(key.name) is None else config.number(key.name)


def _read_activation(family: Family, config: ConfigReader) -> Activation:
    if family.bends:
        return kimi_k3.activation(config)
    key = family.activation_limit
    if key is None:
        return family.activation
    limit = key.default if config.get(key.name) is None else config.number(key.name)
    return replace(family.activation, limit=limit)


def _shared_width(family: Family, config: ConfigReader) -> int:
    if family.shared_width:
        return 0 if config.get(family.shared_width) == 0 else config.integer(family.shared_width)
    if family.shared_experts is None or not config.get(family.shared_experts):
        return 0
    return config.integer(family.shared_experts) * config.integer(family.expert_width)


def _read_layers(family: Family, config: ConfigReader, count: int) -> list[bool]:
    """Which layers have experts: all behind the first dense ones; in a range; each that is named; or every
    `decoder_sparse_step`-th, but for `mlp_only_layers`."""
    if family.leading_dense:
        return _behind_dense(config, count, family.dense_count)
    if family.range_of_experts:
        return _within_range(config, count)
    if family.interleaved_experts:
        return _interleaved(config, count)
    if family.dense_width is None:
        return [True] * count
    step, dense = config.integer("decoder_sparse_step"), config.get("mlp_only_layers")
    dense = [] if dense is None else dense
    if not isinstance(dense, list) or not all(isinstance(i, int) for i in dense):
        raise config.bad("mlp_only_layers", dense, "a list of layer numbers")
    return [(i + 1) % step == 0 and i not in dense for i in range(count)]


def _behind_dense(config: ConfigReader, count: int, key: str) -> list[bool]:
    """The layers behind the first dense ones, whose number or list is given; where both are, `said_twice` compares."""
    config.only("moe_layer_freq", (1, None))
    first, kinds = config.get(key), config.values.get("mlp_layer_types")
    if first is None and kinds is not None:
        config.seen.add("mlp_layer_types")
        if not isinstance(kinds, list) or len(kinds) != count or set(kinds) - {"dense", "sparse"}:
            raise config.bad("mlp_layer_types", kinds, f"a list of {count} times dense or sparse")
        return [kind == "sparse" for kind in kinds]
    first = 0 if first == 0 else config.integer(key)
    return [i >= first for i in range(count)]


def _within_range(config: ConfigReader, count: int) -> list[bool]:
    """Every `moe_layer_interval`-th layer of a range, whose end is the last layer where it is -1 or not there."""
    step = config.integer("moe_layer_interval")
    first, last = config.require("moe_layer_start_index"), config.get("moe_layer_end_index")
    last = count - 1 if last in (None, -1) else last
    for name, value in (("moe_layer_start_index", first), ("moe_layer_end_index", last)):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
            raise config.bad(name, value, f"the number of one of the {count} layers")
    return [first <= i <= last and (i + 1) % step == 0 for i in range(count)]


def _interleaved(config: ConfigReader, count: int) -> list[bool]:
    """The layers of a list, or every so many layers the last one."""
    named = config.get("moe_layers")
    if named is None:
        step = config.integer("interleave_moe_layer_step")
        return [(i + 1) % step == 0 for i in range(count)]
    config.get("interleave_moe_layer_step")
    if not isinstance(named, list) or not all(isinstance(i, int) and 0 <= i < count for i in named):
        raise config.bad("moe_layers", named, f"a list of numbers of the {count} layers")
    return [i in named for i in range(count)]
