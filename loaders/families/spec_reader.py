"""A config.json of a family to its `ModelSpec`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...errors import ConfigError
from ..spec import (
    BankedStreamsSpec,
    GatedStreamsSpec,
    LayerSpec,
    MixerSpec,
    ModelSpec,
    Recurrent,
    RopeSpec,
    StreamsSpec,
)
from . import one_part, quantisation, qwen4_exp, said_twice, window
from .config_reader import ConfigReader
from .family import Family
from .ffn_reader import read_ffns
from .keys import MAX_LAYERS, read_flag, read_scale, same_in_every_layer
from .mixer_reader import read_mixers


def read_spec(family: Family, config: ConfigReader) -> ModelSpec:
    """The spec of a checkpoint of `family`; raises ConfigError for a missing, unknown or unsupported value."""
    quantisation.read(config)
    config.values = same_in_every_layer(config, family.by_layer)
    if family.spelling is not None:
        config.values = family.spelling(config)
    config.seen.update(family.unused)
    config.only(*family.activation_names)
    for name, values in family.implied.items():
        config.only(name, values)
    count = _layers(family, config)
    mixers = read_mixers(family, config, count)
    stretched = [rope.extended_context for rope in _ropes(mixers)]
    context = max([config.integer(family.context), *stretched])
    if not family.windowed:
        context = window.context_within_window(config, context, family.window_needs_switch)
    ffns = read_ffns(family, config, count)
    spec = ModelSpec(
        family=family.model_type,
        vocab=config.integer("vocab_size"),
        hidden=config.integer("hidden_size"),
        context=context,
        norm_eps=config.number(family.norm_eps),
        layers=tuple(
            LayerSpec(mixer=mixer, ffn=ffn, own_norms=family.own_norms, grams=grams)
            for mixer, ffn, grams in zip(mixers, ffns, qwen4_exp.grams(family, config, count), strict=True)
        ),
        tied_head=read_flag(config, family.tied_head),
        embedding_scale=_embedding_scale(family, config),
        residual_scale=read_scale(config, family.residual_scale),
        logits_divisor=read_scale(config, family.logits_divisor),
        layernorms=family.layernorms,
        head_bias=read_flag(config, family.head_bias),
        logits_cap=_logits_cap(family, config),
        streams=_streams(family, config, count),
        eos_ids=_read_eos(config),
    )
    said_twice.check(config, spec)
    said_twice.read_over_contexts(config)
    config.finish()
    return spec


JOINED = "attn_res_joined"  # a GGUF file has norms and projections of a stream's states as one


def _streams(
    family: Family, config: ConfigReader, layers: int
) -> StreamsSpec | GatedStreamsSpec | BankedStreamsSpec | None:
    """Several residual streams, of families that have such."""
    if family.gated_streams is not None:
        number, rank = family.gated_streams
        return GatedStreamsSpec(count=config.integer(number.name), rank=config.integer(rank.name))
    if family.kept_streams is not None:
        every = config.integer(family.kept_streams.name)
        return BankedStreamsSpec(count=1 + -(-layers // every), every=every, joined=config.get(JOINED) is True)
    if family.streams is None:
        return None
    count, rounds, eps = family.streams
    return StreamsSpec(
        count=config.integer(count.name), rounds=config.integer(rounds.name), eps=config.number(eps.name),
        weighted_end=family.weighted_end,
    )  # fmt: skip


def _layers(family: Family, config: ConfigReader) -> int:
    """How many there are; a list of what they are may be all that says it."""
    if not family.one_part:
        return config.integer("num_hidden_layers", maximum=MAX_LAYERS)
    kinds = one_part.kinds(config)
    if config.get("num_hidden_layers") is not None:
        one_part.check_count(config, config.integer("num_hidden_layers", maximum=MAX_LAYERS), kinds)
    return len(kinds)


def _embedding_scale(family: Family, config: ConfigReader) -> float:
    if family.embedding_scale == "root of hidden":
        return math.sqrt(config.integer("hidden_size"))
    return read_scale(config, family.embedding_scale)


def _logits_cap(family: Family, config: ConfigReader) -> float | None:
    if family.logits_cap is None or config.get(family.logits_cap.name) is None:
        return None
    return config.number(family.logits_cap.name)


def _ropes(mixers: Sequence[MixerSpec | None]) -> list[RopeSpec]:
    return [mixer.rope for mixer in mixers if mixer is not None and not isinstance(mixer, Recurrent)]


def read_eos(value: Any) -> tuple[int, ...]:
    """End tokens of a config: null, one id, or a list; raises ValueError for anything else."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise ValueError(f"eos_token_id is {value!r}, supported is null, a token id or a list of them")
    return tuple(ids)


def _read_eos(config: ConfigReader) -> tuple[int, ...]:
    try:
        return read_eos(config.get("eos_token_id"))
    except ValueError as error:
        config.refuse(ConfigError(f"{config.source}: {error}"))
        return ()
