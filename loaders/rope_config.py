"""Reads rotary-embedding settings in both spellings into a `RopeSpec`.

Released configs say `rope_theta` and `rope_scaling {type | rope_type, factor, ...}`, newer ones put all of it into
`rope_parameters`. Where both are there they must agree.
"""

from __future__ import annotations

import math
from typing import Any

from ..errors import ConfigError
from .config import ConfigReader
from .spec import RopeSpec

KINDS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}),
    "yarn": frozenset({"factor", "original_max_position_embeddings"}),
}
OPTIONAL = {"yarn": frozenset({"beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim"})}
COMMON = frozenset({"rope_theta", "partial_rotary_factor", "rope_type", "type"})


def read_rope(config: ConfigReader, head_dim: int) -> RopeSpec:
    """The rope of a config; raises ConfigError for a kind or key that is not supported."""
    values = _merged(config)
    kind = str(values.get("rope_type", values.get("type", "default")))
    if kind not in KINDS:
        raise config.bad("rope_type", kind, ", ".join(KINDS))
    missing = KINDS[kind] - set(values)
    unknown = {k for k, v in values.items() if v is not None} - KINDS[kind] - OPTIONAL.get(kind, frozenset()) - COMMON
    if missing or unknown:
        what, names = ("misses", missing) if missing else ("has unknown", unknown)
        raise ConfigError(f"{config.source}: rope of type '{kind}' {what} {', '.join(sorted(names))}")
    rotary = int(head_dim * float(values.get("partial_rotary_factor") or 1.0))
    if rotary % 2 or rotary < 2:
        raise config.bad("partial_rotary_factor", values.get("partial_rotary_factor"), "an even number of rotated dims")
    return RopeSpec(
        theta=_positive(config, values, "rope_theta"),
        rotary_dim=rotary,
        kind=kind,  # type: ignore[arg-type]  # checked against KINDS above
        factor=float(values.get("factor") or 1.0),
        original_context=int(values.get("original_max_position_embeddings") or 0),
        low_freq_factor=float(values.get("low_freq_factor") or 1.0),
        high_freq_factor=float(values.get("high_freq_factor") or 4.0),
        beta_fast=float(values.get("beta_fast") or 32.0),
        beta_slow=float(values.get("beta_slow") or 1.0),
        truncate=bool(values.get("truncate", True)),
        attention_factor=_attention_factor(values) if kind == "yarn" else 1.0,
    )


def _merged(config: ConfigReader) -> dict[str, Any]:
    """Both spellings in one dict; a disagreement is an error."""
    merged: dict[str, Any] = {}
    sources = [config.get("rope_parameters") or {}, config.get("rope_scaling") or {}]
    flat = {k: config.get(k) for k in ("rope_theta", "partial_rotary_factor")}
    for source in [*sources, {k: v for k, v in flat.items() if v is not None}]:
        if not isinstance(source, dict):
            raise config.bad("rope_scaling", source, "an object or null")
        for key, value in source.items():
            if value is not None and merged.setdefault(key, value) != value:
                raise ConfigError(f"{config.source}: {key} is both {merged[key]} and {value}; remove the wrong one")
    return merged


def _positive(config: ConfigReader, values: dict[str, Any], name: str) -> float:
    value = values.get(name)
    if value is None:
        raise ConfigError(f"{config.source} has no '{name}' (nor inside rope_parameters): add it from the model's card")
    if not isinstance(value, (int, float)) or not value > 0:
        raise config.bad(name, value, "a number above 0")
    return float(value)


def _attention_factor(values: dict[str, Any]) -> float:
    """YaRN's factor on cos and sin: 0.1 m ln(factor) + 1. Source: arXiv 2309.00071 section 3.4; mscale: DeepSeek."""
    if values.get("attention_factor") is not None:
        return float(values["attention_factor"])
    factor = float(values["factor"])

    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, all_dims = values.get("mscale"), values.get("mscale_all_dim")
    if mscale and all_dims:
        return temperature(float(mscale)) / temperature(float(all_dims))
    return temperature(1.0)
