"""Per op, the cases that tests and benchmarks share: inputs, how to call, what error is allowed, bytes and flops.

`tests/kernels/test_kernels.py` runs the small odd shapes on every instruction set against `reference.py`;
`benchmarks/bench_kernels.py` times the large ones. A case builds its inputs from a fixed seed. Weights come from a
`Source`: random ones, packed by the reference, for tests; windows into a huge slab, whose values do not matter, for
benchmarks. Everything around attention is in `attention.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Generator, Tensor

from .. import Ops
from ..decoder_layer import Router
from ..formats import FORMATS, ExpertLayout, Format
from ..packed import TORCH_DTYPES, Matrix
from ..recipes import SWIGLU, Activation, Scoring
from .attention import attention_block_cases, attention_cases, place_qkv_cases, store_rows_cases
from .case import (
    BASIC,
    Case,
    Inputs,
    Source,
    U,
    exact_activations,
    experts_error,
    fresh,
    linear_error,
    normal,
    relative,
    routing,
)
from .layers import layers_cases

# Cases of each op


def quantize_cases() -> Iterator[Case]:
    def build(format: Format, dtype: torch.dtype, rows: int, cols: int) -> Callable[[Generator, Source], Inputs]:
        def make(g: Generator, source: Source) -> Inputs:
            x = normal(g, rows, cols) * torch.logspace(-6, 3, rows).unsqueeze(1)
            x[0] = 0.0  # no scale
            x[-1, 0::2], x[-1, 1::2] = 2.0, -2.0  # equal magnitudes of both signs
            return {"x": x.to(dtype), "format": format}

        return make

    shapes = [(1, 32), (7, 96), (33, 160), (17, 2048)]
    for form in BASIC:
        for dtype in TORCH_DTYPES.values():
            for rows, cols in shapes + ([(5, 1), (3, 77)] if form.block == 1 else []):
                yield Case(
                    op="quantize",
                    name=f"{form.name} from {str(dtype)[6:]} {rows}x{cols}",
                    build=build(form, dtype, rows, cols),
                    call=lambda ops, i: [ops.quantize(i["x"], i["format"])],
                )
    for name in ("q8_0", "q4_0"):
        yield Case(
            op="quantize",
            name=f"{name} from bfloat16 8192x2048",
            build=build(FORMATS[name], torch.bfloat16, 8192, 2048),
            call=lambda ops, i: [ops.quantize(i["x"], i["format"])],
            bytes=8192 * 2048 * 2,
            bench=True,
        )


def unpack_cases() -> Iterator[Case]:
    for form in BASIC:
        for rows, cols in ((1, 32), (33, 160), (7, 2048)) + (((7, 77),) if form.block == 1 else ()):

            def build(g: Generator, source: Source, form: Format = form, rows: int = rows, cols: int = cols) -> Inputs:
                ids = torch.randint(rows, (5,), generator=g)
                return {"matrix": source.matrix(form, rows, cols), "ids": ids}

            name = f"{form.name} {rows}x{cols}"
            yield Case(op="dequantize", name=name, build=build, call=lambda ops, i: [ops.dequantize(i["matrix"])])
            yield Case(op="embed", name=name, build=build, call=lambda ops, i: [ops.embed(i["matrix"], i["ids"], 1.7)])


def pointwise_cases() -> Iterator[Case]:
    for T, D, bench in ((1, 77, False), (5, 160, False), (40, 2048, False), (1, 2048, True), (512, 2048, True)):

        def rows(g: Generator, source: Source, T: int = T, D: int = D) -> Inputs:
            gate = normal(g, T, 1) * 4
            x, y = normal(g, T, D) * 3, normal(g, T, D)
            return {"x": x, "y": y, "w": normal(g, D), "gate": gate, "gate_up": torch.cat([x * 4, y], dim=1)}

        norm_error = D / 4 + 24

        def add_error(i: Inputs, out: list[Tensor], n: float = norm_error) -> list[Tensor | float]:
            lost = (i["x"].abs() + i["y"].abs()) * 4 * U  # of x + scale * y, then through the norm
            spread = lost / out[0].square().mean(-1, keepdim=True).sqrt() * i["w"].abs()
            return [lost, out[1].abs() * n * U + spread * 2]

        def call_add(ops: Ops, i: Inputs) -> list[Tensor]:
            x = fresh(i, "x")
            return [x, ops.add_rmsnorm_(x, i["y"], i["w"], 1e-6, 0.3)]

        def call_gated(ops: Ops, i: Inputs, gated: bool, in_z: bool) -> list[Tensor]:
            y, z = fresh(i, "x"), fresh(i, "y")
            ops.gated_add_(y, z, i["gate"] if gated else None, z if in_z else None)
            return [z if in_z else y]

        def gated_error(i: Inputs, out: list[Tensor]) -> list[Tensor | float]:
            return [(i["x"].abs() + i["y"].abs()) * 16 * U]

        where = {"name": f"{T}x{D}", "build": rows, "bench": bench, "bytes": T * D * 4}
        yield Case(
            op="rmsnorm",
            call=lambda ops, i: [ops.rmsnorm(i["x"], i["w"], 1e-6)],
            allowed=relative(norm_error),
            **where,  # type: ignore[arg-type]
        )
        yield Case(op="add_rmsnorm_", call=call_add, allowed=add_error, **where)  # type: ignore[arg-type]
        for name, gated, in_z in (("", False, False), (" gated", True, False), (" gated, in z", True, True)):
            yield Case(
                op="gated_add_",
                call=lambda ops, i, gated=gated, in_z=in_z: call_gated(ops, i, gated, in_z),  # type: ignore[misc]
                allowed=gated_error,
                **{**where, "name": f"{T}x{D}{name}"},  # type: ignore[arg-type]
            )
        yield Case(
            op="glu",
            call=lambda ops, i: [ops.glu(i["gate_up"])],
            allowed=relative(32),
            **where,  # type: ignore[arg-type]
        )


def argmax_cases() -> Iterator[Case]:
    for S, V in ((1, 5), (3, 1000), (2, 1024), (1, 70001), (9, 4099)):

        def build(g: Generator, source: Source, S: int = S, V: int = V) -> Inputs:
            logits = normal(g, S, V).round(decimals=1)  # many equal ones: the first counts
            logits[S // 2, ::3] = float("-inf")
            return {"logits": logits, "odd": logits.clone().fill_(float("-inf")), "nan": logits.clone()}

        def call(ops: Ops, i: Inputs) -> list[Tensor]:
            i["odd"][0, -1] = float("inf")
            i["nan"][0, i["nan"].shape[1] // 2] = float("nan")
            return [out for name in ("logits", "odd", "nan") for out in ops.argmax(i[name])]

        yield Case(op="argmax", name=f"{S}x{V}", build=build, call=call)
    yield Case(
        op="argmax",
        name="1x151936",
        build=lambda g, source: {"logits": normal(g, 1, 151936)},
        call=lambda ops, i: list(ops.argmax(i["logits"])),
        bytes=151936 * 4,
        bench=True,
    )


def linear_case(form: Format, T: int, R: int, C: int, *, bias: bool, exact: bool, bench: bool = False) -> Case:
    def build(g: Generator, source: Source) -> Inputs:
        x = exact_activations(g, T, C) if exact else normal(g, T, C)
        return {"x": x, "w": source.matrix(form, R, C), "bias": normal(g, R) if bias else None}

    def allowed(i: Inputs, out: list[Tensor]) -> list[Tensor | float]:
        return [linear_error(i, exact) + out[0].abs() * 2 * U]

    return Case(
        op="linear",
        name=f"{form.name} {T}x{R}x{C}{' bias' if bias else ''}{' exact' if exact else ''}",
        build=build,
        call=lambda ops, i: [ops.linear(i["x"], i["w"], i["bias"])],
        allowed=allowed,
        bytes=R * form.row_bytes(C),
        flops=2 * T * R * C,
        bench=bench,
    )


def linear_cases() -> Iterator[Case]:
    case = linear_case
    shapes = ((1, 1, 32), (3, 7, 96), (5, 33, 160), (17, 33, 768), (4, 64, 2048), (130, 3, 64), (70, 200, 544))
    for form in BASIC:
        for number, (T, R, C) in enumerate(shapes):
            yield case(form, T, R, C, bias=number % 2 == 1, exact=False)
            if form.is_block:
                yield case(form, T, R, C, bias=number % 2 == 0, exact=True)
        if not form.is_block:
            yield case(form, 3, 7, 1, bias=False, exact=False)
            yield case(form, 6, 5, 77, bias=True, exact=False)
            yield case(form, 1, 5, 77, bias=False, exact=False)
            yield case(form, 40, 35, 77, bias=False, exact=False)
        for T, R, C in ((16, 64, 64), (17, 33, 32), (32, 16, 288), (33, 17, 96), (64, 31, 544), (200, 130, 1056)):
            yield case(form, T, R, C, bias=T == 33, exact=False)
        yield case(form, 521, 33, 2144, bias=False, exact=False)  # more tokens and columns than a pass by lanes has
        yield case(form, 65, 1, 64, bias=True, exact=False)
        yield case(form, 1, 35, 2080, bias=True, exact=False)
        yield case(form, 65, 7, 64, bias=False, exact=False)
        yield case(form, 1, 65536, 2048, bias=False, exact=False, bench=True)
        yield case(form, 512, 2048, 2048, bias=False, exact=False, bench=True)
        yield case(form, 512, 5120, 2048, bias=False, exact=False, bench=True)


def linear_view_case() -> Iterator[Case]:
    """x as a column range of a wider buffer: any stride from token to token."""

    def build(g: Generator, source: Source) -> Inputs:
        return {"x": normal(g, 5, 300)[:, 20:116], "w": source.matrix(FORMATS["q8_0"], 33, 96)}

    yield Case(
        op="linear",
        name="q8_0 5x33x96 strided",
        build=build,
        call=lambda ops, i: [ops.linear(i["x"], i["w"])],
        allowed=lambda i, out: [linear_error(i)],
    )


def route_case(name: str, E: int, build: Callable[[Generator, Source], Inputs], bench: bool = False) -> Case:
    """Of inputs x and router."""

    def call(ops: Ops, i: Inputs) -> list[Tensor]:
        return list(ops.route(i["x"], i["router"]))

    return Case(op="route", name=name, build=build, call=call, allowed=relative(E / 4 + 32), bench=bench)


def recipe_case(
    name: str, T: int, E: int, recipe: Callable[..., Router], mean: float = 0.0, bench: bool = False, **vectors: float
) -> Case:
    """Exact logits with a spread of 2. vectors: those of the router, by their spread; 0: it has none."""

    def build(g: Generator, source: Source) -> Inputs:
        own = {field: normal(g, E) * spread for field, spread in vectors.items() if spread}
        router = recipe(matrix=Matrix.plain(torch.eye(E)), **own)
        return {"x": normal(g, T, E) * 2 + mean, "router": router}

    return route_case(name, E, build, bench)


def route_cases() -> Iterator[Case]:
    for T, E, K in ((1, 8, 2), (3, 8, 1), (5, 64, 8), (17, 60, 4), (40, 128, 8), (2, 4, 4)):
        scorings: tuple[Scoring, ...] = ("softmax", "softmax_topk")
        for scoring in scorings:
            for renormalise in (False, True):
                recipe = partial(Router, top_k=K, scoring=scoring, renormalise=renormalise)

                def build(
                    g: Generator, source: Source, T: int = T, E: int = E, recipe: Callable[..., Router] = recipe
                ) -> Inputs:
                    logits = normal(g, T, E) * 2
                    logits[:, 1] = logits[:, 0] = 4.0  # a tie at the top: the lower id first
                    return {"x": logits, "router": recipe(matrix=Matrix.plain(torch.eye(E)))}  # exact logits

                yield route_case(f"{T}x{E} top {K} {scoring}{' renormalised' if renormalise else ''}", E, build)


def activation_name(it: Activation) -> str:
    if not it.gated:
        return "no gate, squared relu"
    more = (f" cubic {it.cubic}" if it.cubic else "") + " late" * it.late
    more += f" bent {it.bend} {it.bend_up}" if it.bend else ""
    return f"alpha {it.alpha} offset {it.offset} limit {it.limit}{more}"


def experts_case(form: Format, E: int, D: int, F: int, T: int, K: int, kind: str = "", bench: bool = False) -> Case:
    return experts_case_of(ExpertLayout(format=form, hidden=D, width=F), E, T, K, kind, bench)


def experts_case_of(layout: ExpertLayout, E: int, T: int, K: int, kind: str = "", bench: bool = False) -> Case:
    D, F = layout.hidden, layout.width
    more = " biased" * layout.biased + " weighed input" * layout.weighs_input
    more += "" if layout.activation == SWIGLU else f" {activation_name(layout.activation)}"

    def build(g: Generator, source: Source) -> Inputs:
        ids, weights = routing(g, T, E, K)
        if kind == "crowded":  # every token's first choice is the same expert
            ids[:, 1:] = torch.where(ids[:, 1:] == 3, ids[:, :1], ids[:, 1:])
            ids[:, 0] = 3
        elif kind == "one":
            ids.fill_(E - 1)
        elif kind == "partly elsewhere":  # of one token every second choice; of many also all of some tokens
            ids[:, 1::2] = -1
            ids[1::3] = -1
        elif kind == "all elsewhere":
            ids.fill_(-1)
        return {"x": normal(g, T, D), "ids": ids, "weights": weights, "bank": source.bank(layout, E)}

    return Case(
        op="experts",
        name=f"{layout.name} {E}x{D}x{F} {T} tokens top {K}{' ' + kind if kind else ''}{more}",
        build=build,
        call=lambda ops, i: [ops.experts(i["x"], i["ids"], i["weights"], i["bank"])],
        allowed=experts_error,
        bytes=min(E, T * K) * layout.bytes,  # exact for one token; the benchmark counts the ids
        flops=6 * T * K * D * F,
        bench=bench,
    )


def experts_cases() -> Iterator[Case]:
    case = experts_case
    for form in BASIC:
        yield case(form, 4, 32, 96, 1, 1)
        yield case(form, 8, 160, 96, 1, 2)
        yield case(form, 8, 96, 160, 3, 8)
        yield case(form, 16, 160, 32, 17, 2)
        yield case(form, 8, 64, 96, 40, 2, "crowded")
        yield case(form, 5, 64, 32, 5, 1, "one")
        yield case(form, 3, 96, 64, 64, 1, "one")
        yield case(form, 4, 544, 96, 33, 2)
        yield case(form, 6, 160, 160, 200, 3, "crowded")
        yield case(form, 8, 96, 160, 1, 4, "partly elsewhere")
        yield case(form, 8, 64, 96, 21, 3, "partly elsewhere")
    yield case(FORMATS["f32"], 4, 33, 21, 5, 2)
    yield case(FORMATS["f32"], 4, 33, 21, 1, 2)
    yield case(FORMATS["bf16"], 3, 33, 21, 1, 2)
    yield case(FORMATS["q8_0"], 4, 64, 32, 1, 2, "all elsewhere")
    yield case(FORMATS["q8_0"], 4, 64, 32, 3, 2, "all elsewhere")
    yield case(FORMATS["bf16"], 3, 33, 21, 70, 2)
    yield case(FORMATS["q4_0"], 2, 768, 2048, 2, 2)
    for name in ("q4_0", "q8_0", "bf16"):
        for E, D, F, K in ((64, 2048, 1024, 8), (128, 2048, 768, 8), (8, 4096, 14336, 2)):
            if E * ExpertLayout(format=FORMATS[name], hidden=D, width=F).bytes < 3 << 29:
                yield case(FORMATS[name], E, D, F, 1, K, bench=True)
        for T in (4, 16, 128, 512, 2048):
            yield case(FORMATS[name], 64, 2048, 1024, T, 8, bench=True)
        for T in (128, 512, 2048):
            yield case(FORMATS[name], 128, 2048, 768, T, 8, bench=True)


def all_cases() -> list[Case]:
    """Every case; names are unique within an op."""
    makers = (quantize_cases, unpack_cases, pointwise_cases, place_qkv_cases, argmax_cases, linear_cases,
              linear_view_case, store_rows_cases, attention_cases, attention_block_cases, route_cases, experts_cases,
              layers_cases)  # fmt: skip
    return [case for maker in makers for case in maker()]


CASES = all_cases()
