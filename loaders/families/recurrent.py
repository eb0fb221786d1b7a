"""Recurrences of families whose config lists what each layer is: a short convolution between gates, a state space."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..spec import AttentionSpec, ConvSpec, MixerSpec, SpaceSpec
from .config_reader import ConfigReader
from .family import Family
from .window import FULL

NAMES = ("conv", "mamba", "linear_attention")  # of layers with a recurrence; the others attend
ATTENTION = ("attention", FULL)


def with_attention(
    family: Family, config: ConfigReader, attention: AttentionSpec, count: int
) -> list[MixerSpec | None]:
    """The mixers of so many layers, as `layer_types` lists them."""
    kinds = config.require("layer_types", "layers_block_type")
    said = {str(kind) for kind in kinds[:count]} if isinstance(kinds, list) and len(kinds) >= count else {""}
    if said - {*NAMES, *ATTENTION}:
        names = f"{'conv' if family.mixer == 'conv' else 'mamba'} or {FULL}"
        raise config.bad("layer_types", kinds, f"a list of {count} times {names}")
    recurrence = READERS[family.mixer](config)
    return [recurrence if kind in NAMES else attention for kind in kinds[:count]]


def read_conv(config: ConfigReader) -> ConvSpec:
    """That of the config, with as many channels as a hidden state has values."""
    return ConvSpec(
        channels=config.integer("hidden_size"),
        taps=_taps(config, "conv_L_cache"),
        bias=config.get("conv_bias") is True,
    )


def read_space(config: ConfigReader) -> SpaceSpec:
    """That of the config. Families have two sets of names."""
    heads, groups = config.integer("mamba_n_heads", "mamba_num_heads"), config.integer("mamba_n_groups", "n_groups")
    if heads % groups:
        raise config.bad("mamba_n_groups", groups, f"a divisor of the {heads} heads")
    biased = config.get("mamba_conv_bias", "use_conv_bias")
    return SpaceSpec(
        heads=heads,
        groups=groups,
        k_dim=config.integer("mamba_d_state", "ssm_state_size"),
        v_dim=_head_dim(config, heads),
        taps=_taps(config, "mamba_d_conv", "conv_kernel"),
        conv_bias=biased is None or biased is True,
        bias=config.get("use_bias", "mamba_proj_bias") is True,
        dt_range=_dt_range(config),
    )


READERS: dict[str, Callable[[ConfigReader], ConvSpec | SpaceSpec]] = {"conv": read_conv, "state space": read_space}


def _taps(config: ConfigReader, *names: str) -> int:
    taps = config.integer(*names)
    if taps < 2:
        raise config.bad(names[0], taps, "2 or more")
    return taps


def _head_dim(config: ConfigReader, heads: int) -> int:
    """Values of a head; "auto": all of them are so many times as many as a hidden state has."""
    inner = config.integer("mamba_expand") * config.integer("hidden_size") if config.get("mamba_expand") else None
    if config.get("mamba_d_head") == "auto" and inner is not None and inner % heads == 0:
        return inner // heads
    size = config.integer("mamba_d_head", "mamba_head_dim")
    if inner is not None and inner != heads * size:
        raise config.bad("mamba_d_head", size, f"one that gives {inner} values of {heads} heads, as mamba_expand says")
    return size


def _dt_range(config: ConfigReader) -> tuple[float, float]:
    """The bounds of a step; infinity is written in several ways."""
    bounds = config.get("time_step_limit")
    if bounds is None:
        return 0.0, math.inf
    found = [_number(one) for one in bounds] if isinstance(bounds, list) else []
    if len(found) != 2 or None in found or not 0 <= (found[0] or 0.0) < (found[1] or 0.0):
        raise config.bad("time_step_limit", bounds, "the least and the largest step")
    return found[0] or 0.0, found[1] or 0.0


def _number(value: Any) -> float | None:
    if isinstance(value, dict):
        value = value.get("__float__")
    if value in ("Infinity", "inf"):
        return math.inf
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
