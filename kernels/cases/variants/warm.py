"""Cases of what goes by positions, and of norms and routers of few models: attention within chunks, the temperature of
queries, LayerNorms, weights of what experts take, the routers of Llama 4 and of Phi-3.5-MoE."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor

from ... import Ops
from ...decoder_layer import AttentionBlock, Layer, Router
from ...formats import FORMATS, KV_BF16, KV_F32, KV_Q8_0, ExpertLayout
from ...packed import Matrix
from ..all import experts_case_of, recipe_case
from ..attention import attention_case, block_difference, block_inputs
from ..case import Case, Inputs, Source, U, normal, relative
from ..layers import changed_layers_case


def chunk_cases() -> Iterator[Case]:
    for t in (KV_F32, KV_BF16):
        yield attention_case(4, 2, 24, None, [3, 1, 9], [3, 70, 601], t, chunk=5)
        yield attention_case(8, 1, 32, None, [150, 1], [150, 1100], t, chunk=64, B=7)
        yield attention_case(6, 2, 64, None, [1, 1, 1], [1, 1300, 1025], t, chunk=512, B=48)
        yield attention_case(5, 1, 40, None, [200], [700], t, chunk=600, B=32)
        yield attention_case(4, 4, 16, None, [70, 3], [90, 64], t, chunk=33, window=9)
    yield attention_case(8, 1, 32, None, [150, 1], [150, 1100], KV_Q8_0, chunk=64, B=7)
    yield attention_case(6, 2, 64, None, [1, 1, 1], [1, 1300, 1025], KV_Q8_0, chunk=512, B=48)


def scale_rows_cases() -> Iterator[Case]:
    for T, N, d in ((1, 3, 16), (5, 4, 24), (40, 2, 80)):

        def build(g: Generator, source: Source, T: int = T, N: int = N, d: int = d) -> Inputs:
            at = torch.randint(50, (T,), generator=g, dtype=torch.int32)
            return {"x": normal(g, T, 3 * N, d), "by": normal(g, 50), "at": at}

        def call(ops: Ops, i: Inputs, N: int = N) -> list[Tensor]:
            x = i["x"].clone()
            ops.scale_rows_(x[:, :N], i["by"], i["at"])
            return [x]

        yield Case(op="scale_rows_", name=f"{T}x{N}x{d}", build=build, call=call)


def layernorm_cases() -> Iterator[Case]:
    """Of rows whose mean is many times their spread, too."""
    for T, D, mean in ((1, 5, 0.0), (3, 96, 4.0), (17, 1023, 0.5), (2, 4096, 0.0)):

        def build(g: Generator, source: Source, T: int = T, D: int = D, mean: float = mean) -> Inputs:
            x, y = normal(g, T, D) * 3 + mean, normal(g, T, D)
            return {"x": x, "y": y, "w": normal(g, D), "b": normal(g, D)}

        def lost(i: Inputs, out: Tensor, x: Tensor, D: int = D) -> Tensor:
            """The mean is off by D / 4 roundings of the largest value, and so is each value less it, before the spread
            divides it; then as of an RMSNorm."""
            spread = x.var(-1, correction=0, keepdim=True).sqrt().clamp(min=1e-3)
            off = x.abs().amax(-1, keepdim=True) * (D / 4 + 24) * U
            found: Tensor = (off / spread * i["w"].abs() + (out.abs() + i["b"].abs()) * (D / 4 + 24) * U) * 2
            return found

        def call_add(ops: Ops, i: Inputs) -> list[Tensor]:
            x = i["x"].clone()
            return [x, ops.add_layernorm_(x, i["y"], i["w"], i["b"], 1e-5, 0.3)]

        yield Case(
            op="layernorm",
            name=f"{T}x{D} mean {mean}",
            build=build,
            call=lambda ops, i: [ops.layernorm(i["x"], i["w"], i["b"], 1e-5)],
            allowed=lambda i, out, lost=lost: [lost(i, out[0], i["x"])],  # type: ignore[misc]
        )
        yield Case(
            op="add_layernorm_",
            name=f"{T}x{D} mean {mean}",
            build=build,
            call=call_add,
            allowed=lambda i, out, lost=lost: [  # type: ignore[misc]
                (i["x"].abs() + i["y"].abs()) * 4 * U, lost(i, out[1], out[0]) * 2
            ],
        )  # fmt: skip


def route_cases() -> Iterator[Case]:
    """With logits of both signs and of a few sizes, so that some experts are near the best and others are not."""
    recipes: list[tuple[int, int, Callable[..., Router]]] = [
        (7, 16, partial(Router, top_k=1, scoring="sigmoid_topk", renormalise=False)),
        (5, 60, partial(Router, top_k=2, scoring="sigmoid_topk", renormalise=False, scale=1.5)),
        (9, 16, partial(Router, top_k=2, scoring="sparsemixer", renormalise=False, jitter=0.01)),
        (33, 6, partial(Router, top_k=3, scoring="sparsemixer", renormalise=False, jitter=0.4)),
        (9, 24, partial(Router, top_k=4, scoring="sqrt_softplus", renormalise=True, scale=1.5)),
        (3, 60, partial(Router, top_k=6, scoring="sqrt_softplus", renormalise=False, groups=4, top_groups=2)),
    ]
    for T, E, recipe in recipes:
        known = recipe(matrix=Matrix.plain(torch.eye(1)))
        yield recipe_case(f"{T}x{E} top {known.top_k} {known.scoring}", T, E, recipe, mean=-0.5)


def given_cases() -> Iterator[Case]:
    """Of experts that were chosen before, weights alone are asked for; logits far out on both sides among them."""
    recipes: tuple[Callable[..., Router], ...] = (
        partial(Router, top_k=3, scoring="sqrt_softplus", renormalise=True, scale=2.5),
        partial(Router, top_k=2, scoring="sigmoid", renormalise=False),
        partial(Router, top_k=2, scoring="softmax_topk", renormalise=False),
    )
    for T, recipe in zip((1, 7, 40), recipes, strict=True):
        known = recipe(matrix=Matrix.plain(torch.eye(1)))

        def build(g: Generator, source: Source, T: int = T, recipe: Callable[..., Router] = recipe) -> Inputs:
            router = recipe(matrix=Matrix.plain(torch.eye(16)))
            ids = torch.stack([torch.randperm(16, generator=g)[: router.top_k] for _ in range(T)])
            return {"x": normal(g, T, 16) * 12, "router": router, "ids": ids.to(torch.int32)}

        yield Case(
            op="route",
            name=f"{T}x16 top {known.top_k} {known.scoring} given",
            build=build,
            call=lambda ops, i: list(ops.route(i["x"], i["router"], i["ids"].clone())),
            allowed=relative(64),
        )


def experts_cases() -> Iterator[Case]:
    for name in ("f32", "bf16", "q8_0", "q4_0", "q4_k"):
        sizes = (256, 256) if name == "q4_k" else (160, 96)
        layout = ExpertLayout(format=FORMATS[name], hidden=sizes[0], width=sizes[1], weighs_input=True)
        yield experts_case_of(layout, 6, 1, 1)
        yield experts_case_of(layout, 6, 1, 3, "partly elsewhere")
        yield experts_case_of(layout, 5, 40, 1, "one")
        yield experts_case_of(layout, 8, 21, 2, "crowded")
    biased = ExpertLayout(format=FORMATS["bf16"], hidden=64, width=96, weighs_input=True, biased=True)
    yield experts_case_of(biased, 5, 9, 2)


def warmed(g: Generator, block: AttentionBlock) -> AttentionBlock:
    """The block with chunks, a temperature, and LayerNorms."""
    D = len(block.pre_norm)
    return replace(
        block, chunk=7, temperature_P=normal(g, len(block.cos_Pr)), pre_bias=normal(g, D), post_bias=normal(g, D),
        native={},
    )  # fmt: skip


def block_cases() -> Iterator[Case]:
    def build(g: Generator, source: Source, new: list[int], old: list[int]) -> Inputs:
        i = block_inputs(g, source, FORMATS["q8_0"], 96, new, old, "")
        router = replace(i["block"].router, scoring="sparsemixer", jitter=0.2)
        return {**i, "block": replace(warmed(g, i["block"]), router=router)}

    for new, old in (([1], [40]), ([9, 1], [0, 600])):
        name = f"chunks, temperature, LayerNorms new {new} after {old}"
        yield Case(op="attention_block", name=name, build=partial(build, new=new, old=old), call=block_difference)


def layers_cases() -> Iterator[Case]:
    def warm(g: Generator, source: Source, layer: Layer, index: int) -> Layer:
        assert isinstance(layer.block, AttentionBlock)
        bank = layer.bank
        if bank is not None:
            bank = source.bank(replace(bank.layout, weighs_input=True), bank.experts)
        return replace(layer, block=warmed(g, layer.block), bank=bank)

    for new, old in (([1], [40]), ([37, 5], [3, 0])):
        name = f"chunks, temperature, LayerNorms, weighed input new {new} after {old}"
        yield changed_layers_case(name, FORMATS["q4_0"], warm, new, old)


MAKERS: tuple[Callable[[], Iterator[Case]], ...] = (
    chunk_cases, scale_rows_cases, layernorm_cases, route_cases, given_cases, experts_cases, block_cases,
    layers_cases,
)  # fmt: skip
WARM_CASES = [case for maker in MAKERS for case in maker()]
