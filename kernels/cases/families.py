"""Cases of what only some families have: routers with biases, groups and sigmoid scores, other activations than SwiGLU,
experts with biases, attention within a window, with sinks, and of latents.

Recurrent layers are in `recurrent.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from ..decoder_layer import AttentionBlock, Layer, Router
from ..formats import FORMATS, KV_BF16, KV_F32, KV_Q8_0, ExpertLayout
from ..packed import Matrix
from ..recipes import SWIGLU, Activation
from .all import activation_name, experts_case_of, recipe_case, route_case
from .attention import (
    N,
    attention_case,
    block_difference,
    block_inputs,
)
from .case import Case, Inputs, Source, U, normal
from .layers import changed_layers_case

GPT_OSS = Activation(alpha=1.702, offset=1.0, limit=7.0)
CLAMPED = Activation(limit=0.75)


def route_cases() -> Iterator[Case]:
    def case(T: int, E: int, bias: bool, choice: float, bench: bool = False, **how: Any) -> Case:
        """choice: the spread of the scores' bias, 0: none."""
        recipe = partial(Router, **{"scoring": "sigmoid", "renormalise": True, **how})
        kind = ("bias " if bias else "") + (f"choice bias {choice} " if choice else "")
        name = f"{T}x{E} {kind}{' '.join(f'{name} {value}' for name, value in how.items())}"
        return recipe_case(name, T, E, recipe, bias_E=float(bias), choice_bias_E=choice, bench=bench)

    yield case(3, 8, False, 0, top_k=2)
    yield case(40, 60, True, 0, top_k=4, renormalise=False, scale=2.5)
    yield case(17, 32, True, 0, top_k=4, scoring="softmax_topk")
    yield case(5, 64, True, 1.0, top_k=6, scoring="softmax", scale=1.5)
    yield case(5, 64, False, 1.0, top_k=6, scoring="softmax_topk", scale=0.5)
    yield case(9, 64, False, 0.3, top_k=8, groups=8, top_groups=4, scale=2.5)
    yield case(9, 12, True, 2.0, top_k=4, groups=4, top_groups=2, renormalise=False)
    yield case(33, 60, False, 0, top_k=6, groups=3, top_groups=1, scoring="softmax", group_score="max", scale=16.0)
    yield case(2, 6, False, 0.3, top_k=2, groups=6, top_groups=3, group_score="max")
    yield case(1, 256, False, 0.3, top_k=8, groups=8, top_groups=4, scale=2.5, bench=True)
    yield case(512, 256, False, 0.3, top_k=8, groups=8, top_groups=4, scale=2.5, bench=True)


def route_tie_cases() -> Iterator[Case]:
    """Equal scores, and groups that count the same: the lower number first."""
    for group_score in ("max", "top2"):

        def build(g: Generator, source: Source, group_score: Any = group_score) -> Inputs:
            logits = normal(g, 4, 16).round().clamp(-1, 1)
            router = Router(
                matrix=Matrix.plain(torch.eye(16)), top_k=5, scoring="sigmoid", renormalise=False, groups=4,
                top_groups=2, group_score=group_score, choice_bias_E=torch.full((16,), -2.0),
            )  # fmt: skip
            return {"x": logits, "router": router}

        yield route_case(f"ties, groups by {group_score}", 0, build)


BENT = (Activation(bend=1.3, bend_up=0.9), Activation(bend=9.0))  # the Triton kernels have none of these
OTHERS = (GPT_OSS, CLAMPED, Activation(alpha=1.702), Activation(offset=-0.5))


def glu_cases(activations: tuple[Activation, ...] = OTHERS) -> Iterator[Case]:
    """With NaN in a gate and in an up, which no clamp may hide."""
    for how in activations:
        for T, F, bench in ((1, 5, False), (3, 77, False), (40, 513, False), (512, 2880, True)):

            def build(g: Generator, source: Source, T: int = T, F: int = F) -> Inputs:
                x = normal(g, T, 2 * F) * 6
                x[0, 1] = x[T - 1, F + 3] = float("nan")
                return {"x": x}

            def allowed(i: Inputs, out: list[Tensor], how: Activation = how) -> list[Tensor | float]:
                """32 roundings, and what an up loses by the offset; an exponent e that is made of several products is
                off by 6 u of itself, which a small result, e^e, is off by more; below e^-88 kernels stop."""
                gate, up = i["x"].chunk(2, dim=1)
                lost = (up.abs().clamp(max=how.limit) + abs(how.offset)) * gate.clamp(max=how.limit).abs() * U
                exponent = how.alpha * (gate.abs() + how.cubic * gate.abs() ** 3) * 6 * bool(how.cubic)
                least = 1e-37 + (gate * up).abs() * 1e-38 * bool(how.cubic)
                lost = lost * bool(how.offset)
                if how.bend:  # of a tanh that is 1 less something
                    ups = up.abs() if not how.bend_up else torch.full_like(up, how.bend_up)
                    lost = lost + 16 * U * (how.bend * ups + how.bend_up * how.bend)
                return [out[0].abs() * (32 + exponent.clamp(max=88 * 6)) * U + lost + least]

            yield Case(
                op="glu",
                name=f"{T}x{F} {activation_name(how)}",
                build=build,
                call=lambda ops, i, how=how: [ops.glu(i["x"], how)],  # type: ignore[misc]
                allowed=allowed,
                bytes=T * F * 8,
                bench=bench,
            )


def experts_cases() -> Iterator[Case]:
    def layout(name: str, D: int, F: int, biased: bool, how: Activation) -> ExpertLayout:
        return ExpertLayout(format=FORMATS[name], hidden=D, width=F, biased=biased, activation=how)

    for name in ("f32", "bf16", "q8_0", "q4_0", "mxfp4"):
        yield experts_case_of(layout(name, 160, 96, True, GPT_OSS), 8, 1, 3, "partly elsewhere")
        yield experts_case_of(layout(name, 96, 160, True, GPT_OSS), 6, 40, 3, "crowded")
        yield experts_case_of(layout(name, 544, 96, True, SWIGLU), 4, 33, 2, "partly elsewhere")
        yield experts_case_of(layout(name, 64, 96, False, CLAMPED), 5, 21, 2)
    yield experts_case_of(layout("bf16", 33, 21, True, GPT_OSS), 3, 70, 2)
    yield experts_case_of(layout("f32", 33, 21, True, GPT_OSS), 3, 2, 2)
    for name in ("mxfp4", "bf16"):
        for T in (1, 512):
            yield experts_case_of(layout(name, 2880, 2880, True, GPT_OSS), 32, T, 4, bench=True)


def attention_cases() -> Iterator[Case]:
    case = attention_case
    for t in (KV_F32, KV_BF16):
        yield case(4, 2, 24, 24, [3, 1, 9], [3, 70, 601], t, window=5)
        yield case(8, 1, 32, 32, [150, 1], [150, 1100], t, window=40, sinks=True, B=7)
        yield case(6, 2, 64, 64, [1, 1], [1, 1300], t, window=513, sinks=True, B=48)
        yield case(6, 2, 64, 64, [1, 5], [1, 600], t, sinks=True)
        yield from (case(6, 3, 48, 32, [n, 1, n], [n, 70, 601], t, window=70, sinks=n > 5) for n in (1, 9))
        yield case(5, 1, 40, 24, [2, 1], [40, 300], t, latent=True)
        yield case(70, 1, 80, 64, [2, 1], [40, 300], t, latent=True)
        yield case(20, 1, 80, 64, [1, 9], [70, 9], t, latent=True, window=8)
        yield case(6, 1, 112, 96, [1, 1], [30, 300], t, latent=True)
    yield case(8, 1, 32, 32, [150, 1], [150, 1100], KV_Q8_0, window=40, sinks=True, B=7)
    yield case(6, 2, 64, 64, [1, 1], [1, 1300], KV_Q8_0, window=513, sinks=True, B=48)
    yield from (case(6, 3, 64, 32, [n, 1, n], [n, 70, 601], KV_Q8_0, window=70, sinks=n > 5) for n in (1, 9))
    yield from (case(4, 2, 512, 512, [n, 1], [70, 90], KV_Q8_0) for n in (1, 9))
    yield case(70, 1, 96, 72, [2, 1], [40, 300], KV_Q8_0, latent=True)
    yield case(20, 1, 96, 64, [1, 9], [70, 9], KV_Q8_0, latent=True, window=8)
    yield case(6, 1, 128, 96, [1, 1], [30, 300], KV_Q8_0, latent=True)
    for t in (KV_BF16, KV_Q8_0):
        yield case(128, 1, 576, 512, [1], [200], t, latent=True)
    for new, context in ((1, 32768), (512, 4096)):
        yield case(64, 8, 64, 64, [new], [context], KV_BF16, window=128, sinks=True, bench=True)
    for heads in (16, 64, 128):
        yield case(heads, 1, 576, 512, [1], [8192], KV_BF16, latent=True, B=32, bench=True)
    yield case(128, 1, 576, 512, [64], [2048], KV_BF16, latent=True, B=32, bench=True)


def block_cases() -> Iterator[Case]:
    """The fused op with a window, sinks, and a router of another kind, or with norms behind the turn: the same bits as
    from its parts."""
    routers: list[dict[str, Any]] = [
        {"scoring": "sigmoid", "groups": 4, "top_groups": 2, "scale": 2.5},
        {"scoring": "softmax_topk"},
    ]

    def build(g: Generator, source: Source, more: dict[str, Any], new: list[int], old: list[int]) -> Inputs:
        i = block_inputs(g, source, FORMATS["q8_0"], 96, new, old, "")
        E = i["block"].router.matrix.rows
        router = replace(i["block"].router, bias_E=normal(g, E), choice_bias_E=normal(g, E), **more)
        return {**i, "block": replace(i["block"], window=6, sinks_N=normal(g, N), router=router, native={})}

    def turned_first(g: Generator, source: Source, new: list[int], old: list[int]) -> Inputs:
        i = block_inputs(g, source, FORMATS["q8_0"], 96, new, old, "")
        angle = normal(g, *i["block"].cos_Pr.shape)
        return {**i, "block": replace(i["block"], first=(angle.cos(), angle.sin()), native={})}

    for new, old in (([1], [40]), ([9, 1], [0, 600])):
        for more in routers:
            yield Case(
                op="attention_block",
                name=f"window, sinks, {more['scoring']} new {new} after {old}",
                build=partial(build, more=more, new=new, old=old),
                call=block_difference,
            )
        yield Case(
            op="attention_block",
            name=f"turned first new {new} after {old}",
            build=partial(turned_first, new=new, old=old),
            call=block_difference,
        )


def layers_cases() -> Iterator[Case]:
    """A decoder of layers with and without a window, biased experts, and an activation of each MLP."""

    def of_family(g: Generator, source: Source, layer: Layer, index: int) -> Layer:
        assert isinstance(layer.block, AttentionBlock)
        block = replace(layer.block, window=None if index % 2 else 6, sinks_N=normal(g, N), native={})
        bank = layer.bank
        if bank is not None:
            bank = source.bank(replace(bank.layout, biased=True, activation=GPT_OSS), bank.experts)
        mlp = layer.mlp and replace(layer.mlp, activation=CLAMPED)
        return replace(layer, block=block, bank=bank, mlp=mlp)

    for new, old in (([1], [40]), ([37, 5], [3, 0])):
        name = f"windows, biases, activations new {new} after {old}"
        yield changed_layers_case(name, FORMATS["q4_0"], of_family, new, old)


MAKERS: tuple[Callable[[], Iterator[Case]], ...] = (
    route_cases, route_tie_cases, glu_cases, experts_cases, attention_cases, block_cases, layers_cases,
)  # fmt: skip
FAMILY_CASES = [case for maker in MAKERS for case in maker()]
