"""Attention of two kinds: layers over a window, and layers that see everything, whose heads have other sizes and
another rope, and whose keys may serve as values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..spec import AttentionSpec, MixerSpec
from .config_reader import ConfigReader
from .rope import read_rope
from .window import FULL, SLIDING

PERIOD = 6  # without a list every so many layers one sees everything, and the last one does in any case
OF_FULL = ("global_head_dim", "num_global_key_value_heads", "attention_k_eq_v")
OWN = {"head_dim", "num_key_value_heads", "attention_k_eq_v"}  # what a layer's own entry may say


def by_kind(config: ConfigReader, sliding: AttentionSpec, count: int) -> list[MixerSpec]:
    """The attention of so many layers; `sliding`: that over a window, but for the window."""
    kinds = _kinds(config, count)
    both = {SLIDING: replace(sliding, window=config.integer("sliding_window")), FULL: _full(config, sliding, kinds)}
    return [both[kind] for kind in kinds]


def _kinds(config: ConfigReader, count: int) -> list[str]:
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = [FULL if (i + 1) % PERIOD == 0 or i == count - 1 else SLIDING for i in range(count)]
    if not isinstance(kinds, list) or len(kinds) != count or set(kinds) - {FULL, SLIDING}:
        raise config.bad("layer_types", kinds, f"a list of {count} times {FULL} or {SLIDING}")
    if kinds[-1] != FULL:  # transformers then takes another kind than the config names
        config.refuse(config.bad("layer_types", kinds[-1], f"{FULL} for the last layer"))
    return kinds


def _full(config: ConfigReader, sliding: AttentionSpec, kinds: list[str]) -> AttentionSpec:
    """That of layers that see everything."""
    own = _entries(config, [i for i, kind in enumerate(kinds) if kind == FULL])
    size = own["head_dim"] if "head_dim" in own else config.integer("global_head_dim")
    shares = own.get("attention_k_eq_v", config.get("attention_k_eq_v") is True)
    groups = config.get("num_global_key_value_heads") if shares else None
    groups = own.get("num_key_value_heads", sliding.kv_heads if groups is None else groups)
    for name, value in (("global_head_dim", size), ("num_global_key_value_heads", groups)):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**20:
            raise config.bad(name, value, "a whole number above 0")
    if sliding.heads % groups:
        raise config.bad("num_global_key_value_heads", groups, f"a divisor of num_attention_heads = {sliding.heads}")
    rope = read_rope(config, size, kind=FULL)
    return replace(sliding, head_dim=size, kv_heads=groups, rope=rope, own_values=not shares)


def _entries(config: ConfigReader, layers: list[int]) -> dict[str, Any]:
    """What `per_layer_config` says of the layers that see everything, which is the same of all of them, and nothing of
    others."""
    config.get(*OF_FULL, "vocab_size_per_layer_input")  # the latter of embeddings that models with experts lack
    each = config.get("per_layer_config") or {}
    if not isinstance(each, dict) or not all(isinstance(one, dict) for one in each.values()):
        raise config.bad("per_layer_config", each, "an object with an entry for each layer that differs")
    said = [each.get(str(layer), each.get(layer)) for layer in layers]
    own = said[0] or {}
    others = {str(layer) for layer in each} - {str(layer) for layer in layers}
    if others or any((one or {}) != own for one in said) or set(own) - OWN:
        raise config.bad("per_layer_config", each, f"the same {', '.join(sorted(OWN))} for all layers of {FULL} alone")
    return own
