"""Delta rules with decays by key, and among them layers of latent attention, from a config."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..spec import DeltaSpec, LatentSpec, MixerSpec
from .config_reader import ConfigReader
from .family import Family
from .window import FULL

LINEAR = "linear_attention"
OWN = {
    "linear_head_dim": "head_dim",
    "linear_num_heads": "num_heads",
    "linear_conv_kernel_dim": "short_conv_kernel_size",
}
BOUND = "gate_lower_bound"
LISTS = {LINEAR: "kda_layers", FULL: "full_attn_layers"}  # of layers, the first of which is 1


def with_deltas(family: Family, config: ConfigReader, latent: LatentSpec, count: int) -> list[MixerSpec]:
    """The mixers of so many layers."""
    if family.bounded_decay:
        return _with_bound(config, latent, count)
    config.only("mla_use_nope", (True, None))
    config.get("rope_theta", "rope_scaling", "rope_parameters")  # nothing is rotated, whatever they say
    inner = config.get("linear_attn_config") or {}
    if not isinstance(inner, dict):
        raise config.bad("linear_attn_config", inner, "an object or null")
    sizes = [_size(config, inner, name) for name in OWN]
    delta = _delta(*sizes)
    if family.bends:
        return _with_full_gates(config, inner, delta, latent, count)
    return [delta if kind == LINEAR else latent for kind in kinds_of(config, inner, count)]


def _with_bound(config: ConfigReader, latent: LatentSpec, count: int) -> list[MixerSpec]:
    """Ling-3.0's: decays have a bound, and neither they nor gates come through a smaller rank."""
    dim = config.integer("linear_head_dim", "head_dim")
    heads = config.integer("linear_num_heads", "num_attention_heads")
    taps = config.integer("linear_conv_kernel_dim", "short_conv_kernel_size")
    config.only("short_conv_kernel_size", (taps, None))
    config.only("kda_safe_gate", (True, None))
    least = config.require("kda_lower_bound")
    if not isinstance(least, int | float) or isinstance(least, bool) or not -1e4 < least < 0:
        raise config.bad("kda_lower_bound", least, "a number below 0")
    delta = replace(_delta(dim, heads, taps), decay_rank=0, gate_rank=0, least=float(least))
    if config.get("layer_types") is None:
        step = config.integer("layer_group_size")
        kinds = [LINEAR if (i + 1) % step else FULL for i in range(count)]
    else:
        config.get("layer_group_size")
        kinds = kinds_of(config, {}, count)
    return [delta if kind == LINEAR else latent for kind in kinds]


def _with_full_gates(
    config: ConfigReader, inner: dict[str, Any], delta: DeltaSpec, latent: LatentSpec, count: int
) -> list[MixerSpec]:
    """Kimi-K3's: decays may have a bound; gates of values come through no smaller rank, those of latents too."""
    least = inner.get(BOUND)
    if least is not None and (not isinstance(least, int | float) or isinstance(least, bool) or not -1e4 < least < 0):
        raise config.bad(f"linear_attn_config.{BOUND}", least, "a number below 0, or null")
    bound = replace(delta, gate_rank=0, least=None if least is None else float(least))
    gated = replace(latent, gate=True, gate_of_values=True)
    return [bound if kind == LINEAR else gated for kind in kinds_of(config, inner, count)]


def _delta(dim: int, heads: int, taps: int) -> DeltaSpec:
    """As many heads of keys as of values; what decides on decays and the gate comes through a head's dims."""
    return DeltaSpec(
        k_heads=heads, v_heads=heads, k_dim=dim, v_dim=dim, taps=taps, by_key=True, decay_rank=dim, gate_rank=dim
    )


def _size(config: ConfigReader, inner: dict[str, Any], name: str) -> int:
    """A size by its name in `linear_attn_config`, or by that of newer configs; both must agree."""
    if OWN[name] not in inner:
        return config.integer(name)
    value = inner[OWN[name]]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**20:
        raise config.bad(f"linear_attn_config.{OWN[name]}", value, "a whole number above 0")
    config.only(name, (value, None))
    return value


def kinds_of(config: ConfigReader, inner: dict[str, Any], count: int) -> list[str]:
    """Of each layer whether it has a delta rule or latent attention: by `layer_types`, or by lists of their numbers."""
    kinds = config.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) < count or set(kinds[:count]) - {LINEAR, FULL}:
            raise config.bad("layer_types", kinds, f"a list of {count} times {LINEAR} or {FULL}")
        return kinds[:count]
    at = {i: kind for kind, name in LISTS.items() for i in _numbers(config, inner, name)}
    missing = [i for i in range(1, count + 1) if i not in at]
    if missing:
        raise config.bad(
            "linear_attn_config", f"without layer {missing[0]}", " and ".join(LISTS.values()) + " with all"
        )
    return [at[i] for i in range(1, count + 1)]


def _numbers(config: ConfigReader, inner: dict[str, Any], name: str) -> list[int]:
    found = inner.get(name)
    if not isinstance(found, list) or not all(isinstance(i, int) for i in found):
        raise config.bad(f"linear_attn_config.{name}", found, "a list of layers, the first of which is 1")
    return found
