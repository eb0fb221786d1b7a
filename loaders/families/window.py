"""Attention over a window. Families that are trained with one have it by layer; for others a window is not built: up
to so many tokens it is full attention, and there the context ends.

A window that no sequence reaches is no reason to refuse a model. Released configs hold some by mistake, too.
"""

from __future__ import annotations

from dataclasses import replace

from ..spec import NO_ROPE, AttentionSpec, MixerSpec
from .config_reader import ConfigReader

FULL, SLIDING = "full_attention", "sliding_attention"


def context_within_window(config: ConfigReader, context: int, needs_switch: bool) -> int:
    """The context of a model, shortened to its window if it has a shorter one.

    needs_switch: the family looks at a window only where `use_sliding_window` is true.
    """
    switch, window, layers = config.get("use_sliding_window"), config.get("sliding_window"), config.get("layer_types")
    config.get("max_window_layers")
    is_on = switch is True or (switch is None and not needs_switch)
    if not window or not is_on or (isinstance(layers, list) and SLIDING not in layers):
        return context
    return config.limited(context, "sliding_window")


def check_layer_types(config: ConfigReader) -> None:
    """Refuses layers that are to attend in another way than fully or over a window."""
    layers = config.get("layer_types")
    odd = [one for one in layers if one not in (FULL, SLIDING)] if isinstance(layers, list) else []
    if odd:
        config.refuse(config.bad("layer_types", odd[0], f"{FULL} or {SLIDING}"))


def with_windows(
    config: ConfigReader, attention: AttentionSpec, count: int, full_without_rope: bool = False
) -> list[MixerSpec]:
    """The attention of so many layers, over `sliding_window` tokens where `layer_types` says so; without a list every
    other layer from the first on. full_without_rope: layers that see everything rotate nothing, and the list must be
    there; without a window all of them see everything, and rotate."""
    kinds = config.require("layer_types") if full_without_rope else config.get("layer_types")
    if full_without_rope and config.get("sliding_window") is None:
        return [attention] * count
    size = config.integer("sliding_window")
    full = replace(attention, rope=NO_ROPE) if full_without_rope else attention
    kinds = [SLIDING if i % 2 == 0 else FULL for i in range(count)] if kinds is None else kinds
    if not isinstance(kinds, list) or len(kinds) < count or set(kinds[:count]) - {FULL, SLIDING}:
        raise config.bad("layer_types", kinds, f"a list of {count} times {FULL} or {SLIDING}")
    return [replace(attention, window=size) if kind == SLIDING else full for kind in kinds[:count]]
