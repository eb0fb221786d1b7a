"""Attention within chunks: a query sees the keys of its own one. Beside it layers that see everything and turn nothing,
whose queries are the warmer the further back they look; and that temperature where all layers have it."""

from __future__ import annotations

from dataclasses import replace

from ..spec import NO_ROPE, AttentionSpec, MixerSpec, Temperature
from .config_reader import ConfigReader
from .window import FULL

CHUNKED = "chunked_attention"


def in_chunks(config: ConfigReader, attention: AttentionSpec, count: int) -> list[MixerSpec]:
    """The attention of so many layers. Which turn, and keep to chunks of `attention_chunk_size` positions, say
    `no_rope_layers`, a list that has 1 for those, or else `no_rope_layer_interval`; `layer_types` may say of chunks
    something else. Norms of queries and keys are those of layers that turn."""
    size = None if config.get("attention_chunk_size") is None else config.integer("attention_chunk_size")
    turning = which_turn(config, count)
    still = replace(attention, rope=NO_ROPE, qk_norm="none", temperature=_temperature(config))
    return [
        replace(attention if turns else still, chunk=size if kind == CHUNKED else None)
        for turns, kind in zip(turning, _kinds(config, turning), strict=True)
    ]


def which_turn(config: ConfigReader, count: int) -> list[bool]:
    """Which layers turn queries and keys; an empty list says nothing."""
    flags, interval = config.get("no_rope_layers"), config.get("no_rope_layer_interval")
    if not flags:
        step = 4 if interval is None else config.integer("no_rope_layer_interval")
        return [(i + 1) % step != 0 for i in range(count)]
    if not isinstance(flags, list) or len(flags) != count or set(flags) - {0, 1}:
        raise config.bad("no_rope_layers", flags, f"a list of {count} times 1 (turned) or 0")
    return [flag == 1 for flag in flags]


def _kinds(config: ConfigReader, turning: list[bool]) -> list[str]:
    """Of each layer whether it keeps to chunks."""
    kinds = config.get("layer_types")
    if kinds is None:
        return [CHUNKED if turns else FULL for turns in turning]
    if not isinstance(kinds, list) or len(kinds) != len(turning) or set(kinds) - {CHUNKED, FULL}:
        raise config.bad("layer_types", kinds, f"a list of {len(turning)} times {CHUNKED} or {FULL}")
    return kinds


def _temperature(config: ConfigReader) -> Temperature | None:
    """That of queries which are not turned; released configs leave out what all of them have."""
    config.get("floor_scale", "attn_scale")
    if config.get("attn_temperature_tuning") in (False, 0):
        return None
    length = 8192 if config.get("floor_scale") is None else config.integer("floor_scale")
    scale = 0.1 if config.get("attn_scale") is None else config.number("attn_scale")
    return Temperature(scale=scale, length=length, first=1)
