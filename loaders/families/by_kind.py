"""Attention by the kind of a layer: such that see everything, and such over a window with another number of heads,
another rope, and sinks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ..spec import AttentionSpec, Gate, MixerSpec
from .config_reader import ConfigReader
from .family import Family, Key
from .rope import read_rope
from .window import FULL, SLIDING

OF_WINDOWS = {"num_attention_heads": "num_sliding_attention_heads", "num_key_value_heads": "swa_num_key_value_heads"}
EACH = "num_attention_heads_per_layer"
GATES: dict[Any, Gate] = {True: "of heads", "per-head": "of heads", "per-element": "of values"}


def layers(family: Family, config: ConfigReader, full: AttentionSpec, count: int) -> list[MixerSpec]:
    """The attention of so many layers; `full`: that of those which see everything, but for numbers of heads that are
    given layer by layer."""
    kinds = config.require("layer_types")
    if not isinstance(kinds, list) or len(kinds) < count or set(kinds[:count]) - {FULL, SLIDING}:
        raise config.bad("layer_types", kinds, f"a list of {count} times {FULL} or {SLIDING}")
    heads, kv_heads = (_of_windows(config, name) for name in OF_WINDOWS)
    sliding = full
    if SLIDING in kinds[:count]:
        sliding = replace(
            full,
            heads=heads or full.heads,
            kv_heads=kv_heads or full.kv_heads,
            rope=read_rope(config, full.head_dim, family.partial_rope, kind=SLIDING),
            window=config.integer("sliding_window"),
            sinks=family.sinks,
        )
    config.get("sliding_window")
    found = [sliding if kind == SLIDING else full for kind in kinds[:count]]
    found = [replace(one, heads=n or one.heads) for one, n in zip(found, _each(config, count), strict=True)]
    for one in found:
        if one.heads % one.kv_heads:
            raise config.bad("num_key_value_heads", one.kv_heads, f"a divisor of the {one.heads} heads of a layer")
    return list(found)


def _of_windows(config: ConfigReader, name: str) -> int | None:
    """A number of heads that layers over a window have of their own."""
    own = OF_WINDOWS[name]
    return None if config.get(own) is None else config.integer(own)


def _each(config: ConfigReader, count: int) -> list[int | None]:
    """The heads of each layer, where the config lists them."""
    each = config.get(EACH)
    if each is None:
        return [None] * count
    if not isinstance(each, list) or len(each) < count or not all(_is_count(n) for n in each):
        raise config.bad(EACH, each, f"a list of {count} whole numbers above 0")
    return list(each[:count])


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**20


def gate(family: Family, config: ConfigReader) -> Gate:
    """The gates of a family with a projection for them: one a head, unless its config says more."""
    if family.head_gate is None:
        return "none"
    value = config.get("gating")
    if value is not None and (not isinstance(value, (bool, str)) or value not in GATES):
        raise config.bad("gating", value, 'true, "per-head" or "per-element"')
    return "of heads" if value is None else GATES[value]


def scale_of_values(config: ConfigReader, key: Key) -> float:
    """What values are multiplied by; 1 where the config says null."""
    return 1.0 if config.get(key.name) is None else config.number(key.name)


def ropes(config: ConfigReader, by_kind: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Settings of each kind's rope in place of those that a config gives side by side. Where it has them by kind
    already, these."""
    given = config.get("rope_parameters")
    if isinstance(given, dict) and {FULL, SLIDING} & set(given):
        return dict(given)
    plain = {key: value for key, value in (given or {}).items() if not isinstance(value, dict)}
    return {kind: {**(plain if kind == FULL else {}), **values} for kind, values in by_kind.items()}


def without(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The values of a config without those that others stand for now."""
    return {name: value for name, value in values.items() if name not in names}


def same(config: ConfigReader, name: str, of: str) -> None:
    """Refuses a number of layers over a window that is not that of the others, where no family has it so."""
    config.seen.update((name, of))
    value, wanted = config.values.get(name), config.values.get(of)
    if value is not None and value != wanted:
        raise config.bad(name, value, f"{of} = {wanted}")
