"""Reads rotary-embedding settings in both spellings into a `RopeSpec`.

Released configs say `rope_theta` and `rope_scaling {type | rope_type, factor, ...}`, newer ones put all of it into
`rope_parameters`. Where both are there they must agree.
"""

from __future__ import annotations

import math
from typing import Any

from ...errors import ConfigError
from ..spec import RopeSpec
from .config_reader import ConfigReader

KINDS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}),
    "yarn": frozenset({"factor", "original_max_position_embeddings"}),
}
OPTIONAL = {"yarn": frozenset({"beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim"})}
COMMON = frozenset({"rope_theta", "partial_rotary_factor", "rope_type"})


def read_rope(config: ConfigReader, head_dim: int) -> RopeSpec:
    """The rope of a config; raises ConfigError for a kind or key that is not supported."""
    values = _merged(config)
    kind = values.get("rope_type", "default")
    if not isinstance(kind, str) or kind not in KINDS:
        raise config.bad("rope_type", kind, ", ".join(KINDS))
    missing = KINDS[kind] - set(values)
    unknown = set(values) - KINDS[kind] - OPTIONAL.get(kind, frozenset()) - COMMON
    if missing or unknown:
        what, names = ("misses", missing) if missing else ("has unknown", unknown)
        raise ConfigError(f"{config.source}: rope of type '{kind}' {what} {', '.join(sorted(names))}")
    if "rope_theta" not in values:
        raise ConfigError(f"{config.source} has no 'rope_theta' (nor in rope_parameters): add it from the model's card")
    number = {k: config.positive(k, v) for k, v in values.items() if k not in ("rope_type", "truncate")}
    return RopeSpec(
        theta=number["rope_theta"],
        rotary_dim=_rotary_dim(config, head_dim, number.get("partial_rotary_factor", 1.0)),
        kind=kind,  # type: ignore[arg-type]  # checked against KINDS above
        factor=number.get("factor", 1.0),
        original_context=int(number.get("original_max_position_embeddings", 0)),
        low_freq_factor=number.get("low_freq_factor", 1.0),
        high_freq_factor=number.get("high_freq_factor", 4.0),
        beta_fast=number.get("beta_fast", 32.0),
        beta_slow=number.get("beta_slow", 1.0),
        truncate=_truncate(config, values),
        attention_factor=_attention_factor(number) if kind == "yarn" else 1.0,
    )


def _truncate(config: ConfigReader, values: dict[str, Any]) -> bool:
    value = values.get("truncate", True)
    if not isinstance(value, bool):
        raise config.bad("truncate", value, "true or false")
    return value


def _rotary_dim(config: ConfigReader, head_dim: int, share: float) -> int:
    rotary = int(head_dim * share)
    if rotary % 2 or not 2 <= rotary <= head_dim:
        raise config.bad("partial_rotary_factor", share, f"one that rotates an even number of the {head_dim} dims")
    return rotary


def _merged(config: ConfigReader) -> dict[str, Any]:
    """Both spellings in one dict; a disagreement is an error."""
    merged: dict[str, Any] = {}
    sources = [{k: config.get(k) for k in ("rope_theta", "partial_rotary_factor")}]
    for name in ("rope_parameters", "rope_scaling"):
        source = config.get(name)
        if not isinstance(source, dict | None):
            raise config.bad(name, source, "an object or null")
        sources.append(source or {})
    for source in sources:
        for key, value in source.items():
            key = "rope_type" if key == "type" else key  # the older spelling
            if value is not None and merged.setdefault(key, value) != value:
                raise ConfigError(f"{config.source}: {key} is both {merged[key]} and {value}; remove the wrong one")
    return merged


def _attention_factor(values: dict[str, float]) -> float:
    """YaRN's factor on cos and sin: 0.1 m ln(factor) + 1. Source: arXiv 2309.00071 section 3.4; mscale: DeepSeek."""
    if "attention_factor" in values:
        return values["attention_factor"]
    factor = values["factor"]

    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, all_dims = values.get("mscale"), values.get("mscale_all_dim")
    if mscale and all_dims:
        return temperature(mscale) / temperature(all_dims)
    return temperature(1.0)
