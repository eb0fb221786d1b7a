"""Reads rotary-embedding settings in both spellings into a `RopeSpec`.

Released configs say `rope_theta` and `rope_scaling {type | rope_type, factor, ...}`, newer ones put all of it into
`rope_parameters`. Where both are there they must agree.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ...errors import ConfigError
from ..spec import RopeSpec
from .config_reader import ConfigReader

TRAINED = "original_max_position_embeddings"
WARMTH = "llama_4_scaling_beta"  # read with the mixer: how much warmer queries become
KINDS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", TRAINED, "low_freq_factor", "high_freq_factor"}),
    "yarn": frozenset({"factor", TRAINED}),
    "proportional": frozenset(),
    "longrope": frozenset({"short_factor", "long_factor", TRAINED}),
}
OPTIONAL = {
    "proportional": frozenset({"factor"}),
    "yarn": frozenset({"beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim", WARMTH}),
    "longrope": frozenset({"factor", "attention_factor", "short_mscale", "long_mscale"}),
}
LISTS = ("short_factor", "long_factor")
COMMON = frozenset({"rope_theta", "partial_rotary_factor", "rope_type"})
# dynamic stretches past max_position_embeddings, where the context ends, unless it has an alpha: then theta is another
# one, everywhere. mrope gives text the positions that it has.
PLAIN = ("dynamic", "mrope", None)
FOREIGN = frozenset({"factor", TRAINED, "short_factor", "long_factor", *OPTIONAL["yarn"], *KINDS["llama3"]})


def read_rope(
    config: ConfigReader,
    head_dim: int,
    partial: bool = False,
    dims: str | None = None,
    kind: str = "full_attention",
    whole: int | None = None,
) -> RopeSpec:
    """The rope of a config; refuses a kind or key that is not supported. partial: the config must say how many of a
    head's dims are rotated. dims: a key that may say it, beside their share of the head. kind: of the layers, where
    each kind has settings of its own. whole: dims that a share is of, where only the rotated part of a head is seen
    here, all of which is rotated."""
    try:
        return _read(config, head_dim, partial, dims, kind, whole or head_dim)
    except ConfigError as error:
        config.refuse(error)
        return RopeSpec(theta=1.0, rotary_dim=head_dim)


def _read(config: ConfigReader, head_dim: int, partial: bool, dims: str | None, layers: str, whole: int) -> RopeSpec:
    rotated = config.integer(dims, maximum=head_dim) if dims and config.get(dims) is not None else None
    values = _merged(config, {} if rotated is None else {"partial_rotary_factor": rotated / head_dim}, layers)
    kind = values.get("rope_type", "default")
    stretched = _stretched(config, values, head_dim) if kind == "dynamic" and "alpha" in values else 1.0
    kind = "default" if kind in PLAIN else kind
    if not isinstance(kind, str) or kind not in KINDS:
        raise config.bad("rope_type", kind, ", ".join(KINDS))
    if TRAINED in KINDS[kind] and (trained := config.get(TRAINED, "max_position_embeddings")):
        values.setdefault(TRAINED, trained)
    used = KINDS[kind] | OPTIONAL.get(kind, frozenset()) | COMMON
    _check_rest(config, kind, {name: value for name, value in values.items() if name not in used})
    if missing := KINDS[kind] - set(values):
        raise ConfigError(
            f"{config.source}: rope of type '{kind}' misses {', '.join(sorted(missing))}: add it from the model's card"
        )
    if "rope_theta" not in values:
        raise ConfigError(f"{config.source} has no 'rope_theta' (nor in rope_parameters): add it from the model's card")
    if partial and "partial_rotary_factor" not in values:
        config.require("partial_rotary_factor")
    number = {k: config.positive(k, values[k]) for k in used - {"rope_type", "truncate", *LISTS} if k in values}
    share = number.get("partial_rotary_factor", 1.0)
    share = share if share == 1 or whole == head_dim else round(share * whole) / head_dim
    rope = RopeSpec(
        theta=number["rope_theta"] * stretched,
        rotary_dim=_rotary_dim(config, head_dim, 1.0 if kind == "proportional" else share),
        kind=kind,  # type: ignore[arg-type]  # checked against KINDS above
        factor=number.get("factor", 1.0),
        original_context=int(number.get(TRAINED, 0)) if TRAINED in KINDS[kind] else 0,
        low_freq_factor=number.get("low_freq_factor", 1.0),
        high_freq_factor=number.get("high_freq_factor", 4.0),
        beta_fast=number.get("beta_fast", 32.0),
        beta_slow=number.get("beta_slow", 1.0),
        truncate=_truncate(config, values),
        attention_factor=_attention_factor(number) if kind == "yarn" else 1.0,
        share=_rotary_dim(config, head_dim, share) / head_dim if kind == "proportional" else 1.0,
    )
    return _two_sets(config, rope, number, values) if kind == "longrope" else rope


def _two_sets(config: ConfigReader, rope: RopeSpec, number: dict[str, float], values: dict[str, Any]) -> RopeSpec:
    """A rope with a factor for each pair, others for sequences beyond the trained context. Where the config does not
    say it, cos and sin grow by sqrt(1 + ln(stretching) / ln(trained context)). Source: LongRoPE (arXiv 2402.13753)."""
    pairs, trained = rope.rotary_dim // 2, rope.original_context
    for name in LISTS:
        if not isinstance(values[name], list) or len(values[name]) != pairs:
            raise config.bad(name, values[name], f"a list of {pairs} numbers above 0")
    short, long = (tuple(config.positive(name, one) for one in values[name]) for name in LISTS)
    stretched = number.get("factor", config.integer("max_position_embeddings") / trained)
    grown = number.get("attention_factor", math.sqrt(1 + math.log(max(stretched, 1.0)) / math.log(max(trained, 2))))
    if trained < config.integer("max_position_embeddings"):
        config.notes.append(note_of_two_sets(trained))
    return replace(
        rope, factors=short, long_factors=long, attention_factor=number.get("short_mscale", grown),
        long_attention_factor=number.get("long_mscale", grown),
    )  # fmt: skip


def note_of_two_sets(trained: int) -> str:
    """What a user should know of a rope with two sets of factors."""
    return (
        f"the rope has other factors for contexts above {trained} tokens, which hold for all sequences where one may "
        f"be as long: --max-context {trained} or less takes those for short ones"
    )


def _stretched(config: ConfigReader, values: dict[str, Any], head_dim: int) -> float:
    """What an alpha multiplies theta by, whatever the context. Source: Hunyuan-A13B's published model."""
    alpha = config.positive("alpha", values.pop("alpha"))
    return alpha ** (head_dim / (head_dim - 2)) if head_dim > 2 else 1.0


def _check_rest(config: ConfigReader, kind: str, rest: dict[str, Any]) -> None:
    """Notes settings of other kinds, which transformers reads over too; refuses what nobody knows, and the config does
    not say again."""
    again = {name for name, value in rest.items() if config.values.get(name) == value}
    rest = {name: rest[name] for name in rest if name not in again and not config.is_harmless(name, rest[name])}
    unknown = sorted(rest.keys() - FOREIGN)
    if unknown:
        what = f"rope of type '{kind}' has unknown {', '.join(unknown)}"
        config.refuse(ConfigError(f"{config.source}: {what}; {config.way_round(unknown)}"))
    elif rest:
        said = ", ".join(f"{name} {value}" for name, value in sorted(rest.items()))
        config.notes.append(f"rope of type '{kind}' has no {said}: read over, as transformers does")


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


def _merged(config: ConfigReader, more: dict[str, Any], layers: str) -> dict[str, Any]:
    """Both spellings in one dict, and what another key says; a disagreement is an error."""
    merged: dict[str, Any] = {}
    sources = [more, {k: config.get(k) for k in ("rope_theta", "partial_rotary_factor")}]
    for name in ("rope_parameters", "rope_scaling"):
        source = config.get(name)
        if not isinstance(source, dict | None):
            raise config.bad(name, source, "an object or null")
        sources.append(_named(config, source or {}, layers))
    for source in sources:
        for key, value in source.items():
            if value is not None and merged.setdefault(key, value) != value:
                raise ConfigError(f"{config.source}: {key} is both {merged[key]} and {value}; remove the wrong one")
    return merged


def _named(config: ConfigReader, values: dict[str, Any], layers: str) -> dict[str, Any]:
    """Settings by today's names: those of a kind of layers where kinds have theirs, and `type`, unless both are there,
    as rope_type."""
    inner = values.get(layers, values.get("full_attention"))
    values = dict(inner if isinstance(inner, dict) else values)
    older, newer = values.pop("type", None), values.get("rope_type")
    if newer is not None and older not in (newer, *PLAIN):
        config.notes.append(f"rope_type is '{newer}' and type '{older}': the first is used, as by transformers")
    return {"rope_type": older, **values}


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
