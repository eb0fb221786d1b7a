"""Latent attention that learns what positions do: frequencies of the turn, the weight of their logarithms on queries;
and layers beside that turn nothing, whose heads have those dims without a turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..spec import NO_ROPE, LatentSpec
from .chunks import which_turn
from .config_reader import ConfigReader

SOURCES = "kv_source_layers"


def with_still(config: ConfigReader, layers: Sequence[LatentSpec]) -> list[LatentSpec]:
    """The layers with what is learned, and without a turn where `no_rope_layers` says so. Raises ConfigError where
    layers see the latents of other ones."""
    sources = config.get(SOURCES)
    if sources is not None and sources != list(range(len(layers))):
        raise config.bad(SOURCES, sources, f"the list of 0 to {len(layers) - 1}, each layer with latents of its own")
    turns = which_turn(config, len(layers))
    learned = [replace(one, by_logs=True, rope=replace(one.rope, learned=True)) for one in layers]
    return [one if turned else _still(one) for one, turned in zip(learned, turns, strict=True)]


def _still(it: LatentSpec) -> LatentSpec:
    return replace(it, nope=it.nope + it.rope_dim, rope=replace(NO_ROPE, rotary_dim=0))
