"""Cases of blocks and layers with other mixers than plain attention: latent attention, the gated delta rule, a short
convolution between gates, a state space, a gate of attention; and of layers of one part. The fused op gives the same
bits as its parts, so the difference is zero. The Triton kernels have none of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from ..decoder_layer import Block, FeedBlock, Piece, Places, Router, Stack
from ..formats import FORMATS, KV_BF16, KV_F32, KV_Q8_0, Format, KVFormat
from ..mixers import ConvBlock, DeltaBlock, LatentBlock, SpaceBlock
from ..packed import Stacked
from ..sparse.indexer import Indexer
from .attention import (
    EXPERTS,
    HEAD,
    PAGE,
    TOP_K,
    G,
    N,
    block_difference,
    cache_of,
    paged,
    places_of,
    random_block,
    rows_of,
)  # fmt: skip
from .case import BASIC, Case, Inputs, Source, normal
from .layers import layer_of, layers_difference

HIDDEN = 96
RANK, OWN, TURNED, VALUE = 64, 32, 32, 48  # of latent attention: a latent, a key's own part, what is rotated, a value
INDEX_HEADS, INDEX_KEY, CHOSEN = 6, 40, 20  # of an indexer; CHOSEN: keys that are seen
K_HEADS, K_DIM, V_HEADS, V_DIM, TAPS = 2, 32, 4, 16, 4  # of the delta rule


def common(g: Generator, source: Source, form: Format, width: int) -> dict[str, Any]:
    """What every block has, whose mixer gives so many values."""
    matrix = source.matrix(FORMATS["f32"], EXPERTS, HIDDEN)
    router = Router(matrix=matrix, top_k=TOP_K, scoring="softmax", renormalise=True)
    return {
        "pre_norm": normal(g, HIDDEN), "post_norm": normal(g, HIDDEN), "eps": 1e-6, "residual_scale": 0.7,
        "o": source.matrix(form, HIDDEN, width), "o_bias": normal(g, HIDDEN), "router": router,
    }  # fmt: skip


def latent_block(
    g: Generator, source: Source, form: Format, contexts: list[int], low: bool, tables: Tensor | None = None,
    kv: KVFormat | None = None,
) -> LatentBlock:  # fmt: skip
    """low: queries by way of a small rank, biases, and a bf16 cache; else a gate for each head. tables: its pages, by
    sequence. kv: of the cache where it is another one than these are."""
    angle, rows, rank = normal(g, max(contexts), TURNED // 2), RANK + TURNED, 64
    return LatentBlock(
        heads=N,
        q_a=source.matrix(form, rank, HIDDEN) if low else None,
        q_a_norm=normal(g, rank) if low else None,
        q_a_bias=normal(g, rank) if low else None,
        q=source.matrix(form, N * (OWN + TURNED), rank if low else HIDDEN),
        kv_a=source.matrix(form, rows, HIDDEN),
        kv_a_bias=normal(g, rows) if low else None,
        kv_a_norm=normal(g, RANK),
        k_up=source.matrix(form, N * RANK, OWN),
        v_up=source.matrix(form, N * VALUE, RANK),
        rows_P1Bl=paged(g, contexts, 1, PAGE, rows, kv or (KV_BF16 if low else KV_F32), tables)["k"],
        cos_Pr=angle.cos(),
        sin_Pr=angle.sin(),
        norm_eps=1e-5,
        scale=1 / math.sqrt(OWN + TURNED),
        gate=source.matrix(form, N, HIDDEN) if not low else None,
        **common(g, source, form, N * VALUE),
    )


def delta_block(g: Generator, source: Source, form: Format, slots: int, in_turns: bool) -> DeltaBlock:
    """With so many slots of state; what is in them is random."""
    keys, values = K_HEADS * K_DIM, V_HEADS * V_DIM
    channels = 2 * keys + values
    parts = (2 * keys, values) if in_turns else (channels,)
    return DeltaBlock(
        k_heads=K_HEADS,
        k_dim=K_DIM,
        in_turns=in_turns,
        qkv=Stacked(tuple(source.matrix(form, rows, HIDDEN) for rows in parts)),
        z=source.matrix(form, values, HIDDEN),
        ba=source.matrix(FORMATS["f32"], 2 * V_HEADS, HIDDEN),
        conv_CW=normal(g, channels, TAPS),
        rate_H=-normal(g, V_HEADS).exp(),
        dt_bias_H=normal(g, V_HEADS),
        norm_v=normal(g, V_DIM),
        inputs_LCw=normal(g, slots, channels, TAPS - 1),
        state_LHkv=normal(g, slots, V_HEADS, K_DIM, V_DIM),
        **common(g, source, form, values),
    )


def key_delta_block(g: Generator, source: Source, form: Format, slots: int) -> DeltaBlock:
    """The same with decays by key; decays and gate come through a smaller rank."""
    block, rank, decays = delta_block(g, source, form, slots, False), 64, V_HEADS * K_DIM
    return replace(
        block,
        ba=source.matrix(FORMATS["f32"], V_HEADS, HIDDEN),
        dt_bias_H=normal(g, decays),
        decay_low=source.matrix(form, rank, HIDDEN),
        decay=source.matrix(form, decays, rank),
        z_low=source.matrix(form, rank, HIDDEN),
        z=source.matrix(form, V_HEADS * V_DIM, rank),
    )


def conv_block(g: Generator, source: Source, form: Format, slots: int, biased: bool) -> ConvBlock:
    channels = 64
    return ConvBlock(
        rows=source.matrix(form, 3 * channels, HIDDEN),
        rows_bias=normal(g, 3 * channels) if biased else None,
        conv_CW=normal(g, channels, 3),
        conv_bias_C=normal(g, channels) if biased else None,
        inputs_LCw=normal(g, slots, channels, 2),
        **common(g, source, form, channels),
    )


def space_block(g: Generator, source: Source, form: Format, slots: int, groups: int) -> SpaceBlock:
    """Of several groups with a bias, and with bounds of a step."""
    heads, keys, size = V_HEADS, 24, 40
    values, biased = heads * size, groups > 1
    channels = values + 2 * groups * keys
    return SpaceBlock(
        groups=groups,
        dt_range=(0.5, 1.5) if biased else (0.0, math.inf),
        rows=source.matrix(form, values + channels + heads, HIDDEN),
        rows_bias=normal(g, values + channels + heads) if biased else None,
        conv_CW=normal(g, channels, TAPS),
        conv_bias_C=normal(g, channels) if biased else None,
        rate_H=-normal(g, heads).exp(),
        dt_bias_H=normal(g, heads),
        skip_H=normal(g, heads),
        norm_V=normal(g, values),
        inputs_LCw=normal(g, slots, channels, TAPS - 1),
        state_LHkv=normal(g, slots, heads, keys, size),
        **common(g, source, form, values),
    )


def stateful(places: Places, cut: int | None = None) -> Places:
    """Places with a slot of state for each sequence, the last first. cut: a state is kept so many tokens into the first
    sequence, in the slot behind all others."""
    S = len(places.contexts_S)
    slots = list(range(S))[::-1]
    with_states = replace(places, states_S=torch.tensor(slots, dtype=torch.int32), native={})
    if cut is None:
        return with_states
    pieces = []
    for s, slot in enumerate(slots):
        first, last = int(places.starts_S1[s]), int(places.starts_S1[s + 1])
        old = int(places.contexts_S[s]) - (last - first)
        stops = [cut, last] if s == 0 else [last]
        for begin, stop in zip([first, *stops], stops, strict=False):
            numbers = torch.tensor([slot, 0, stop - begin, old + stop - first], dtype=torch.int32)
            where = {"states_S": numbers[:1], "starts_S1": numbers[1:3], "contexts_S": numbers[3:]}
            keep = S if s == 0 and stop == cut else None
            pieces.append(Piece(first=begin, last=stop, slot=slot, keep=keep, **where))
    return replace(with_states, pieces=tuple(pieces))


MakeBlock = Callable[[Generator, Source, Format, list[int], Inputs], Block]


def gated_block(g: Generator, source: Source, form: Format, contexts: list[int], cache: Inputs) -> Block:
    """Attention behind a gate, with a cache of its own."""
    own = {name: cache[name].clone() for name in ("k", "v")}
    block = random_block(g, source, form, HIDDEN, {**cache, **own}, "")
    return replace(block, gate=source.matrix(form, N * HEAD, HIDDEN))


def q8_block(g: Generator, source: Source, form: Format, contexts: list[int], cache: Inputs) -> Block:
    """Attention over q8_0."""
    own = paged(g, contexts, G, PAGE, HEAD, KV_Q8_0, cache["tables"])
    return random_block(g, source, form, HIDDEN, {**cache, **own}, "")


def latent(
    g: Generator, source: Source, form: Format, contexts: list[int], cache: Inputs, low: bool,
    kv: KVFormat | None = None,
) -> Block:  # fmt: skip
    return latent_block(g, source, form, contexts, low, cache["tables"], kv)


def delta(g: Generator, source: Source, form: Format, contexts: list[int], cache: Inputs, in_turns: bool) -> Block:
    return delta_block(g, source, form, len(contexts) + 1, in_turns)


def key_delta(g: Generator, source: Source, form: Format, contexts: list[int], cache: Inputs) -> Block:
    return key_delta_block(g, source, form, len(contexts) + 1)


def few(g: Generator, source: Source, form: Format, contexts: list[int], cache: Inputs, own: bool) -> Block:
    """Latent attention to some keys of a context alone, chosen by an indexer of its own, or before."""
    block = latent_block(g, source, form, contexts, True, cache["tables"])
    assert block.q_a is not None, "queries of an indexer without a latent"
    indexer = Indexer(
        heads=INDEX_HEADS,
        q=source.matrix(form, INDEX_HEADS * INDEX_KEY, block.q_a.rows),
        k=source.matrix(form, INDEX_KEY, HIDDEN),
        norm_e=normal(g, INDEX_KEY),
        bias_e=normal(g, INDEX_KEY),
        eps=1e-6,
        weights=source.matrix(FORMATS["f32"], INDEX_HEADS, HIDDEN),
        keys_P1Be=paged(g, contexts, 1, PAGE, INDEX_KEY, KV_BF16, cache["tables"])["k"],
        cos_Pr=block.cos_Pr,
        sin_Pr=block.sin_Pr,
    )
    return replace(block, top=CHOSEN, indexer=indexer if own else None)


def short(g: Generator, source: Source, form: Format, contexts: list[int], cache: Inputs, biased: bool) -> Block:
    return conv_block(g, source, form, len(contexts) + 1, biased)


def space(g: Generator, source: Source, form: Format, contexts: list[int], cache: Inputs, groups: int) -> Block:
    return space_block(g, source, form, len(contexts) + 1, groups)


def no_mixer(g: Generator, source: Source, form: Format, contexts: list[int], cache: Inputs) -> Block:
    made = common(g, source, form, 32)
    return FeedBlock(**{**made, "o": None, "o_bias": None, "post_norm": None})


BLOCKS: dict[str, MakeBlock] = {
    "gated attention": gated_block,
    "latent": partial(latent, low=False),
    "latent low": partial(latent, low=True),
    "latent few": partial(few, own=True),
    "attention q8_0": q8_block,
    "latent q8_0": partial(latent, low=True, kv=KV_Q8_0),
    "delta": partial(delta, in_turns=False),
    "delta turns": partial(delta, in_turns=True),
    "delta by key": key_delta,
    "conv": partial(short, biased=False),
    "conv biased": partial(short, biased=True),
    "space": partial(space, groups=1),
    "space groups": partial(space, groups=2),
    "no mixer": no_mixer,
}
BEHIND: dict[str, MakeBlock] = {"latent chosen before": partial(few, own=False)}  # another layer


def inputs_of(g: Generator, new: list[int], old: list[int], rows: str, cut: int | None) -> tuple[Inputs, Inputs]:
    """What a block and layers both take, and the pages of attention."""
    T = sum(new)
    cache = cache_of(g, [n + o for n, o in zip(new, old, strict=True)])
    places = stateful(places_of(new, old, cache["tables"], PAGE), cut)
    return {"x": normal(g, T, HIDDEN), "rows": rows_of(rows, T), "places": places}, cache


def block_cases() -> Iterator[Case]:
    def case(kind: str, form: Format, new: list[int], old: list[int], rows: str = "", cut: int | None = None) -> Case:
        def build(g: Generator, source: Source) -> Inputs:
            inputs, cache = inputs_of(g, new, old, rows, cut)
            contexts = [n + o for n, o in zip(new, old, strict=True)]
            block = BLOCKS[kind](g, source, form, contexts, cache)
            return {**inputs, "update": normal(g, sum(new), HIDDEN), "block": block}

        name = f"{form.name} {kind} new {new} after {old}{' ' + rows if rows else ''}"
        name += "" if cut is None else f" kept at {cut}"
        return Case(op="attention_block", name=name, build=build, call=block_difference)

    for kind in BLOCKS:
        for form in BASIC:
            yield case(kind, form, [1], [40])
            yield case(kind, form, [37, 5], [0, 30])
        yield case(kind, FORMATS["q8_0"], [1, 1, 1], [0, 7, 600])
        yield case(kind, FORMATS["q8_0"], [9, 3], [2, 0], "few rows")
        yield case(kind, FORMATS["q4_0"], [9, 1], [2, 20], "no rows")
    for kind in ("latent", "latent low", "latent q8_0"):  # made keys of several segments, between sequences without
        yield case(kind, FORMATS["q8_0"], [1, 140, 2], [30, 900, 0])
        yield case(kind, FORMATS["f32"], [70, 50], [0, 5])
    for kind in ("delta", "delta turns", "delta by key", "conv", "space", "space groups"):
        yield case(kind, FORMATS["q8_0"], [33, 6], [0, 8], cut=16)
        yield case(kind, FORMATS["f32"], [4, 1], [60, 3], cut=4)


def layers_cases() -> Iterator[Case]:
    """Models of several kinds of layers in one call: as Qwen3-Next's, as DeepSeek's, and all together."""

    def layer_kinds(text: str) -> list[tuple[str, str]]:
        return [(mixer, ffn) for mixer, ffn in (pair.split("+") for pair in text.split(", "))]

    def case(kinds: str, form: Format, new: list[int], old: list[int], rows: str = "", cut: int | None = None) -> Case:
        def build(g: Generator, source: Source) -> Inputs:
            inputs, cache = inputs_of(g, new, old, rows, cut)
            contexts = [n + o for n, o in zip(new, old, strict=True)]
            layers = []
            for mixer, ffn in layer_kinds(kinds):
                block = (BLOCKS | BEHIND)[mixer](g, source, form, contexts, cache)
                block = replace(block, router=None) if ffn in ("dense", "nothing") else block
                block = replace(block, post_norm=None) if ffn == "nothing" else block
                layers.append(layer_of(g, source, form, block, ffn))
            return {**inputs, "stack": Stack(layers=tuple(layers))}

        name = f"{form.name} {kinds} new {new} after {old}{' ' + rows if rows else ''}"
        name += "" if cut is None else f" kept at {cut}"
        return Case(op="layers", name=name, build=build, call=layers_difference)

    hybrid = "delta+gated, delta+moe, delta turns+gated, gated attention+gated"
    latent = "latent low+dense, latent low+shared, latent+moe"
    sparse = "latent few+dense, latent chosen before+shared, latent few+moe, latent chosen before+moe"
    by_key = "delta by key+dense, delta by key+shared, latent+shared, delta by key+moe"
    mixed = "latent+dense, delta+shared, gated attention+moe, latent low+gated"
    q8_0 = "attention q8_0+moe, latent q8_0+dense"
    convs = "conv+dense, gated attention+moe, conv biased+moe"
    spaces = "space+shared, space groups+moe, gated attention+shared"
    # The last layer has no mixer, or is its mixer alone.
    of_one = "space groups+nothing, no mixer+ungated, gated attention+nothing, no mixer+dense, no mixer+ungated shared"
    ends = "no mixer+ungated, space+nothing"
    for kinds, cut in (
        (hybrid, 2), (latent, None), (sparse, None), (by_key, 2), (mixed, 2), (convs, 2), (spaces, 2), (of_one, 2),
        (ends, 2), (q8_0, None),
    ):  # fmt: skip
        for form in (FORMATS["f32"], FORMATS["q8_0"]):
            yield case(kinds, form, [1], [40])
            yield case(kinds, form, [37, 5], [3, 0], "few rows")
        yield case(kinds, FORMATS["q4_0"], [3, 1], [0, 70], cut=cut)
        yield case(kinds, FORMATS["bf16"], [9], [20], "no rows")


MIXER_CASES = [case for maker in (block_cases, layers_cases) for case in maker()]
