"""Cases of layers with norms of each part's own: blocks and decoders of them, norms of values, keys that serve as
values, factors of experts' weights, GeGLU, a scaled residual stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from torch import Generator, Tensor

from ... import Ops
from ...decoder_layer import AttentionBlock, Layer, Router
from ...formats import FORMATS, KV_BF16, KV_F32, KV_Q8_0, ExpertLayout, KVFormat
from ...packed import Stacked, Tail
from ...recipes import GEGLU
from ..all import experts_case_of, recipe_case
from ..attention import N, block_difference, cache_of, place_qkv_case
from ..case import Case, Inputs, Source, normal
from ..families import glu_cases
from ..layers import layers_difference, layers_inputs


def place_qkv_cases() -> Iterator[Case]:
    for t in (KV_F32, KV_BF16):
        yield place_qkv_case(1, 16, 2, 512, 256, 32, "head", None, t, "normed and shared")
        yield place_qkv_case(9, 5, 3, 80, 20, 7, "head", 1.5, t, "normed and shared")
        yield place_qkv_case(3, 6, 2, 24, 8, 16, "head", None, t, "normed")
        yield place_qkv_case(5, 4, 2, 24, 12, 16, "", 2.0, t, "shared")
    yield place_qkv_case(9, 5, 3, 96, 20, 7, "head", 1.5, KV_Q8_0, "normed and shared")
    yield place_qkv_case(1, 16, 2, 512, 256, 32, "head", None, KV_Q8_0, "normed and shared")
    yield place_qkv_case(5, 4, 2, 32, 12, 16, "", 2.0, KV_Q8_0, "shared")
    yield place_qkv_case(3, 6, 2, 32, 8, 16, "head", None, KV_Q8_0, "normed")


def route_cases() -> Iterator[Case]:
    """With a factor for each expert."""
    for T, E, recipe in (
        (7, 60, partial(Router, top_k=8, scoring="softmax", renormalise=True)),
        (3, 12, partial(Router, top_k=4, scoring="sigmoid", renormalise=False, groups=4, top_groups=2, scale=1.5)),
    ):
        yield recipe_case(f"{T}x{E} factors", T, E, recipe, factors_E=1.0)


def experts_cases() -> Iterator[Case]:
    for name in ("f32", "bf16", "q8_0", "q4_0", "q4_k", "mxfp4"):
        for hidden, width, E, T, K, kind in ((96, 64, 5, 21, 2, ""), (160, 96, 5, 1, 2, "partly elsewhere")):
            D, F = (max(256, hidden // 256 * 256), 256) if name == "q4_k" else (hidden, width)
            yield experts_case_of(
                ExpertLayout(format=FORMATS[name], hidden=D, width=F, activation=GEGLU), E, T, K, kind
            )


def with_own_norms(g: Generator, source: Source, layer: Layer, index: int) -> Layer:
    """The layer with norms in front of and behind every part, normed values, and a factor for each expert; behind the
    first one keys serve as values."""
    block, shared = layer.block, index > 0
    assert isinstance(block, AttentionBlock)
    assert block.router is not None, "a layer without experts"
    D, (_, groups, _, d) = len(block.pre_norm), block.k_PGBd.shape
    E = block.router.matrix.rows
    rows = (N + groups if shared else N + 2 * groups) * d
    block = replace(
        block, out_norm=normal(g, D), router_norm=normal(g, D), v_norm=normal(g, d), shared=shared, residual_scale=1.0,
        router=replace(block.router, factors_E=normal(g, E)),
        qkv=Stacked((source.matrix(block.qkv.parts[0].format, rows, D),)), native={},
    )  # fmt: skip
    mlp_in, mlp_out, experts_out, out = (normal(g, D) for _ in range(4))
    tail = Tail(mlp_in=mlp_in, mlp_out=mlp_out, experts_out=experts_out, out=out, scale=normal(g, 1))
    assert layer.bank is not None, "a layer without experts"
    bank = source.bank(replace(layer.bank.layout, activation=GEGLU), layer.bank.experts)
    return replace(layer, block=block, bank=bank, mlp=layer.mlp and replace(layer.mlp, activation=GEGLU), tail=tail)


def own_norms_cases() -> Iterator[Case]:
    """Blocks and a decoder of layers with norms of their own: the same bits as from their parts."""

    def build(g: Generator, source: Source, new: list[int], old: list[int], rows: str, kv: KVFormat) -> Inputs:
        cache = cache_of(g, [n + o for n, o in zip(new, old, strict=True)], kv)
        i = layers_inputs(g, source, FORMATS["q8_0"], ["shared"] * 3, new, old, rows, with_own_norms, cache)
        return {**i, "block": i["stack"].layers[1].block, "update": normal(g, sum(new), 96)}

    for op, call in (("attention_block", block_difference), ("layers", layers_difference)):
        for new, old, rows in (([1], [40], ""), ([37, 5], [3, 0], "few rows"), ([9], [20], "no rows")):
            for kv in (KV_BF16, KV_Q8_0):
                name = f"own norms {kv.name} new {new} after {old}{rows and ' ' + rows}"
                yield Case(op=op, name=name, build=partial(build, new=new, old=old, rows=rows, kv=kv), call=call)


def scale_cases() -> Iterator[Case]:
    for T, C in ((1, 5), (3, 77), (40, 513)):

        def build(g: Generator, source: Source, T: int = T, C: int = C) -> Inputs:
            return {"x": normal(g, T, C), "by": normal(g, 1)}

        def call(ops: Ops, i: Inputs) -> list[Tensor]:
            x = i["x"].clone()
            ops.scale_(x, i["by"])
            return [x]

        yield Case(op="scale_", name=f"{T}x{C}", build=build, call=call)


MAKERS = (place_qkv_cases, route_cases, partial(glu_cases, (GEGLU,)), experts_cases, own_norms_cases, scale_cases)
OWN_NORMS_CASES = [case for maker in MAKERS for case in maker()]
