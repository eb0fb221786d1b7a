"""Per op, the cases that tests and benchmarks share: inputs, how to call, what error is allowed, bytes and flops.

`tests/test_kernels.py` runs the small odd shapes on every instruction set against `reference.py`;
`benchmarks/bench_kernels.py` times the large ones. A case builds its inputs from a fixed seed. Weights come from a
`Source`: random ones, packed by the reference, for tests; windows into a huge slab, whose values do not matter, for
benchmarks.

Tolerances are per output value, with u = 2^-24 (float32) and no free constants but the ones below:

    sum of n products     |error| <= (n / 4 + 8) u * sum |w x|: the longest chain of additions is n / 4 (four lanes, the
                          narrowest kernel), and 8 more join lanes and scale. The twin may err as much again, hence 2 x.
    block formats         where an ISA multiplies unsigned quants q + o (o = 128 for q8_0, 8 for q4_0) and takes
                          o * sum x away, rounding acts on larger terms: |w| becomes |w| + 2 o d, d the block's scale.
    int8 activations      x = s q + e, e uniform in +-s / 2, s = max|x| / 127 per 32: the error of sum w x has standard
                          deviation sqrt(sum w^2 s^2 / 12); 6 of them are allowed. An MLP passes the variances on.
    bf16 tiles            with many tokens some ISAs round activations, and the weights of block formats, to bf16: an
                          error uniform in +-ulp / 2, ulp <= 2^-7 |x|; variances as for int8. `Inputs["tiles"]` says
                          from how many tokens on (the tests ask the ISA).
    softmax, exp          exp is good to 2^-22 of itself, a score off by e changes a weight by e of itself.

What a kernel must reproduce exactly (packing, unpacking, embedding, cache writes) has tolerance 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from . import Ops
from . import reference as ref
from .formats import FORMATS, ExpertLayout, Format
from .reference import Scoring
from .weights import TORCH_DTYPES, ExpertBank, Matrix

U = 2.0**-24
SIGMAS = 6.0
TILE_ROWS = 16  # a matrix with fewer rows never goes through tiles
OFFSETS = {"q8_0": 128.0, "q4_0": 8.0}

Inputs = dict[str, Any]


class Source(Protocol):
    """Where a case's weights come from."""

    def matrix(self, format: Format, rows: int, cols: int) -> Matrix: ...

    def bank(self, layout: ExpertLayout, experts: int) -> ExpertBank: ...


@dataclass(frozen=True)
class RandomSource:
    """Normal values of standard deviation `std`, packed by the reference."""

    generator: Generator
    std: float = 0.1

    def matrix(self, format: Format, rows: int, cols: int) -> Matrix:
        values = torch.randn(rows, cols, generator=self.generator) * self.std
        return Matrix(format, rows, cols, ref.quantize(values, format))

    def bank(self, layout: ExpertLayout, experts: int) -> ExpertBank:
        bank = ExpertBank(layout, torch.zeros(experts, layout.bytes, dtype=torch.uint8))
        for expert in range(experts):
            for part in ("gate", "up", "down"):
                into = bank.matrix(expert, part)
                into.data.copy_(self.matrix(into.format, into.rows, into.cols).data)
        return bank


@dataclass(frozen=True)
class SlabSource:
    """A random window into one large slab of bytes: every call reads weights that no cache holds."""

    slab: Tensor
    generator: Generator

    def _window(self, size: int) -> Tensor:
        place = int(torch.randint((self.slab.numel() - size) // 4096 + 1, (1,), generator=self.generator)) * 4096
        return self.slab[place : place + size]

    def matrix(self, format: Format, rows: int, cols: int) -> Matrix:
        return Matrix(format, rows, cols, self._window(rows * format.row_bytes(cols)).view(rows, -1))

    def bank(self, layout: ExpertLayout, experts: int) -> ExpertBank:
        return ExpertBank(layout, self._window(experts * layout.bytes).view(experts, -1))


def nothing(i: Inputs, out: list[Tensor]) -> list[Tensor | float]:
    """Tolerance 0: the same bits."""
    return [0.0 for _ in out]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One op with one shape. `call` runs a backend on the inputs and returns all that the op produced or changed."""

    op: str
    name: str
    build: Callable[[Generator, Source], Inputs]
    call: Callable[[Ops, Inputs], list[Tensor]]
    allowed: Callable[[Inputs, list[Tensor]], list[Tensor | float]] = nothing
    bytes: int = 0  # of weights or cache that one call reads
    flops: int = 0
    bench: bool = False  # too large for a test; timed instead

    def inputs(self, source: Source | None = None, seed: int = 1) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        return self.build(generator, source or RandomSource(generator))


# Tolerances


def sum_error(n: int) -> float:
    """Error of a sum of n products, as a share of the sum of their magnitudes; both sides of a comparison."""
    return 2 * (n / 4 + 8) * U


def scales(matrix: Matrix) -> Tensor:
    """The scale of every weight of a block format, float32 [R, C]."""
    form = matrix.format
    halves = matrix.data[:, : matrix.cols // form.block * 2].contiguous().view(torch.float16).float().abs()
    return halves.repeat_interleave(form.block, 1)


def magnitude(matrix: Matrix) -> Tensor:
    """|w| as rounding sees it: with the offset of unsigned quants."""
    values = ref.dequantize(matrix).abs()
    offset = OFFSETS.get(matrix.format.name)
    return values if offset is None else values + 2 * offset * scales(matrix)


def quant_variance(x_TC: Tensor, format: Format) -> Tensor:
    """Variance of the error of activations as int8 per 32: s^2 / 12; zero where a format takes float32."""
    if not format.scale_bytes:
        return torch.zeros_like(x_TC)
    T, C = x_TC.shape
    step = x_TC.abs().reshape(T, C // format.block, format.block).amax(-1) / 127.0
    return (step.square() / 12.0).repeat_interleave(format.block, 1)


def bf16_variance(values: Tensor) -> Tensor:
    """Variance of the error of rounding to bf16: ulp^2 / 12."""
    return (values * 2.0**-7).square() / 12.0


def noise_of(x_TC: Tensor, w: Matrix, tiled: bool, exact: bool) -> Tensor:
    """Variance of x @ w.T from rounding activations (none if they are `exact` in any format) and, in tiles, weights."""
    weights = ref.dequantize(w)
    if exact:
        noise = torch.zeros_like(x_TC)
    else:
        noise = bf16_variance(x_TC) if tiled else quant_variance(x_TC, w.format)
    variance = noise @ weights.square().T
    if tiled and w.format.scale_bytes:
        variance = variance + x_TC.square() @ bf16_variance(weights).T
    return variance


def rounding_of(x_TC: Tensor, w: Matrix) -> Tensor:
    """What float32 arithmetic may lose of x @ w.T."""
    return x_TC.abs() @ magnitude(w).T * sum_error(w.cols)


def takes_tiles(i: Inputs, format: Format, tokens: int) -> bool:
    """Whether so many tokens of one matrix go through bf16 tiles."""
    least: int = i.get("tiles", {}).get(format.name, 0)
    return least > 0 and tokens >= least


def is_exact(i: Inputs, tiled: bool) -> bool:
    """Whether activations are taken as they are: by dot products, with `Inputs["activations"]` bf16."""
    return bool(i.get("activations") == "bf16") and not tiled


def linear_error(i: Inputs, exact: bool = False) -> Tensor:
    x, w = i["x"].contiguous(), i["w"]
    tiled = w.rows >= TILE_ROWS and takes_tiles(i, w.format, x.shape[0])
    return rounding_of(x, w) + SIGMAS * noise_of(x, w, tiled, exact or is_exact(i, tiled)).sqrt()


def mlp_error(x_TD: Tensor, gate: Matrix, up: Matrix, down: Matrix, tiled: bool, exact: bool) -> tuple[Tensor, Tensor]:
    """Variance and rounding bound of one expert's output. silu' <= 1.1, |silu(g)| <= |g|."""
    g, u = ref.linear(x_TD, gate), ref.linear(x_TD, up)
    a, b = (1.1 * u).abs(), torch.nn.functional.silu(g).abs()
    h, weights = b * u, ref.dequantize(down)
    variance = a.square() * noise_of(x_TD, gate, tiled, exact)
    variance = variance + b.square() * noise_of(x_TD, up, tiled, exact)
    rounding = a * rounding_of(x_TD, gate) + b * rounding_of(x_TD, up) + h.abs() * 32 * U
    rounding = rounding @ weights.abs().T + rounding_of(h, down)
    return variance @ weights.square().T + noise_of(h, down, tiled, exact), rounding


def experts_error(i: Inputs, out: list[Tensor]) -> list[Tensor | float]:
    x, ids, weights, bank = i["x"], i["ids"], i["weights"], i["bank"]
    variance, rounding = torch.zeros_like(x), torch.zeros_like(x)
    for expert in ids.unique().tolist():
        token, slot = torch.where(ids == expert)
        w = weights[token, slot].unsqueeze(1).abs()
        tiled = takes_tiles(i, bank.layout.format, token.numel())
        gate, up, down = (bank.matrix(expert, part) for part in ("gate", "up", "down"))
        var, rnd = mlp_error(x[token], gate, up, down, tiled, is_exact(i, tiled))
        variance.index_add_(0, token, var * w.square())
        rounding.index_add_(0, token, rnd * w)
    return [SIGMAS * variance.sqrt() + rounding * 2]


def attention_error(i: Inputs, out: list[Tensor]) -> list[Tensor | float]:
    """A score is off by at most e = error of a sum of d products |q||k|, weights by 2 e of themselves, sums by n u."""
    d, context = i["q"].shape[-1], int(i["contexts"].max())
    keys, values = i["k"].float().nan_to_num(), i["v"].float().nan_to_num()
    score = sum_error(d) * i["q"].norm(dim=-1).max() * keys.norm(dim=-1).max() * i["scale"]
    return [float((2 * score + sum_error(context) + 2**-21) * values.abs().max())]


def relative(n: float) -> Callable[[Inputs, list[Tensor]], list[Tensor | float]]:
    """n roundings, as a share of each value; the smallest normal numbers may be lost."""
    return lambda i, out: [o.abs() * (n * U) + 1e-37 if o.is_floating_point() else 0.0 for o in out]


# Inputs


def normal(g: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g)


def fused(g: Generator, T: int, N: int, d: int) -> tuple[Tensor, Tensor]:
    """A buffer [T, 3N, d] and a view of its middle third: heads as they lie in the output of a fused qkv projection."""
    buffer = normal(g, T, 3 * N, d)
    return buffer, buffer[:, N : 2 * N]


def exact_activations(g: Generator, T: int, C: int) -> Tensor:
    """Whole numbers with a 127 in every 32: int8 per 32 represents them exactly, with scale 1."""
    x = torch.randint(-127, 128, (T, C), generator=g).float()
    x[:, ::32] = 127.0
    return x


def routing(g: Generator, T: int, E: int, K: int) -> tuple[Tensor, Tensor]:
    scores = torch.rand(T, E, generator=g)
    weights, ids = scores.topk(K, dim=-1)
    return ids.to(torch.int32).contiguous(), (weights / weights.sum(-1, keepdim=True)).contiguous()


def paged(g: Generator, contexts: list[int], G: int, B: int, d: int, dtype: torch.dtype) -> Inputs:
    """Caches with every sequence's pages scattered; what no sequence has written is NaN."""
    longest = max(-(-c // B) for c in contexts)
    S = len(contexts)
    tables = torch.randperm(S * longest + 1, generator=g)[: S * longest].view(S, longest).to(torch.int32)
    k = torch.full((S * longest + 1, G, B, d), float("nan"), dtype=dtype)
    v = k.clone()
    for s, context in enumerate(contexts):
        place = torch.arange(context)
        pages = tables[s].long()[place // B]
        k[pages, :, place % B] = normal(g, context, G, d).to(dtype)
        v[pages, :, place % B] = normal(g, context, G, d).to(dtype)
    return {"k": k, "v": v, "tables": tables, "contexts": torch.tensor(contexts, dtype=torch.int32)}


def fresh(i: Inputs, name: str) -> Tensor:
    """What an op may write into: a copy, or the input itself where only the time matters."""
    tensor: Tensor = i[name]
    return tensor if i.get("in_place") else tensor.clone()


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
    for form in FORMATS.values():
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
    for form in FORMATS.values():
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

        def call_gated(ops: Ops, i: Inputs, gated: bool) -> list[Tensor]:
            x = fresh(i, "x")
            ops.gated_add_(x, i["y"], i["gate"] if gated else None)
            return [x]

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
        for gated in (False, True):
            yield Case(
                op="gated_add_",
                call=lambda ops, i, gated=gated: call_gated(ops, i, gated),  # type: ignore[misc]
                allowed=gated_error,
                **{**where, "name": f"{T}x{D}{' gated' if gated else ''}"},  # type: ignore[arg-type]
            )
        yield Case(
            op="silu_mul",
            call=lambda ops, i: [ops.silu_mul(i["gate_up"])],
            allowed=relative(32),
            **where,  # type: ignore[arg-type]
        )


def head_cases() -> Iterator[Case]:
    """Ops on views [T, N, d] of a fused buffer. The whole buffer is compared: the neighbours must not change."""
    for T, N, d in ((1, 1, 16), (3, 2, 24), (5, 7, 64), (17, 4, 80), (64, 16, 128)):

        def build(g: Generator, source: Source, T: int = T, N: int = N, d: int = d) -> Inputs:
            buffer, _ = fused(g, T, N, d)
            angle = normal(g, 50, d // 4)
            where = torch.randint(50, (T,), generator=g, dtype=torch.int32)
            return {"buffer": buffer, "N": N, "w": normal(g, d), "cos": angle.cos(), "sin": angle.sin(), "at": where}

        def norm(ops: Ops, i: Inputs) -> list[Tensor]:
            buffer = fresh(i, "buffer")
            ops.rmsnorm_(buffer[:, i["N"] : 2 * i["N"]], i["w"], 1e-6)
            return [buffer]

        def rope(ops: Ops, i: Inputs) -> list[Tensor]:
            buffer = fresh(i, "buffer")
            ops.rope_(buffer[:, i["N"] : 2 * i["N"]], i["cos"], i["sin"], i["at"])
            return [buffer]

        def rope_error(i: Inputs, out: list[Tensor]) -> list[Tensor | float]:
            return [i["buffer"].abs().amax(-1, keepdim=True) * 4 * U + out[0] * 0]

        yield Case(op="rmsnorm_", name=f"{T}x{N}x{d}", build=build, call=norm, allowed=relative(d / 4 + 24))
        yield Case(op="rope_", name=f"{T}x{N}x{d}", build=build, call=rope, allowed=rope_error)


def kv_write_cases() -> Iterator[Case]:
    for T, G, B, d in ((1, 1, 16, 16), (5, 2, 16, 24), (17, 4, 32, 128), (3, 3, 7, 80)):
        for dtype in (torch.float32, torch.bfloat16):

            def build(
                g: Generator, source: Source, T: int = T, G: int = G, B: int = B, d: int = d, t: torch.dtype = dtype
            ) -> Inputs:
                cache = torch.zeros(6, G, B, d, dtype=t)
                return {"cache": cache, "k": fused(g, T, G, d)[1], "v": fused(g, T, G, d)[1],
                        "slots": torch.randperm(6 * B, generator=g)[:T]}  # fmt: skip

            def call(ops: Ops, i: Inputs) -> list[Tensor]:
                k, v = i["cache"].clone(), i["cache"].clone()
                ops.kv_write_(k, v, i["k"], i["v"], i["slots"])
                return [k, v]

            yield Case(op="kv_write_", name=f"{str(dtype)[6:]} {T}x{G}x{d} page {B}", build=build, call=call)


def linear_cases() -> Iterator[Case]:
    def case(form: Format, T: int, R: int, C: int, bias: bool, exact: bool, bench: bool = False) -> Case:
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

    shapes = ((1, 1, 32), (3, 7, 96), (5, 33, 160), (17, 33, 768), (4, 64, 2048), (130, 3, 64), (70, 200, 544))
    for form in FORMATS.values():
        for number, (T, R, C) in enumerate(shapes):
            yield case(form, T, R, C, bias=number % 2 == 1, exact=False)
            if form.scale_bytes:
                yield case(form, T, R, C, bias=number % 2 == 0, exact=True)
        if not form.scale_bytes:
            yield case(form, 3, 7, 1, bias=False, exact=False)
            yield case(form, 6, 5, 77, bias=True, exact=False)
            yield case(form, 40, 35, 77, bias=False, exact=False)
        for T, R, C in ((16, 64, 64), (17, 33, 32), (32, 16, 288), (33, 17, 96), (64, 31, 544), (200, 130, 1056)):
            yield case(form, T, R, C, bias=T == 33, exact=False)
        yield case(form, 65, 1, 64, bias=True, exact=False)
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


def attention_cases() -> Iterator[Case]:
    def case(N: int, G: int, d: int, B: int, new: list[int], contexts: list[int], t: torch.dtype, bench: bool) -> Case:
        def build(g: Generator, source: Source) -> Inputs:
            starts = torch.tensor([0, *torch.tensor(new).cumsum(0).tolist()], dtype=torch.int32)
            q = fused(g, sum(new), N, d)[1]
            return {**paged(g, contexts, G, B, d, t), "q": q, "starts": starts, "scale": 1 / math.sqrt(d)}

        def call(ops: Ops, i: Inputs) -> list[Tensor]:
            batch = i["tables"], i["starts"], i["contexts"]
            return [ops.attention(i["q"], i["k"], i["v"], *batch, i["scale"])]

        pairs = sum(n * c - n * (n - 1) // 2 for n, c in zip(new, contexts, strict=True))
        return Case(
            op="attention",
            name=f"{str(t)[6:]} {N}/{G} heads d{d} page {B}: new {new} of {contexts}",
            build=build,
            call=call,
            allowed=attention_error,
            bytes=2 * sum(contexts) * G * d * t.itemsize,
            flops=4 * pairs * N * d,
            bench=bench,
        )

    f32, bf16 = torch.float32, torch.bfloat16
    for N, G, d, B in ((1, 1, 16, 16), (4, 4, 24, 16), (8, 2, 64, 32), (7, 1, 80, 16), (6, 2, 128, 48), (3, 3, 5, 7)):
        for t in (f32, bf16):
            yield case(N, G, d, B, [3, 1, 9], [3, 70, 601], t, bench=False)
    yield case(2, 1, 64, 16, [1], [1700], bf16, bench=False)
    yield case(4, 2, 32, 16, [150, 1], [150, 1], f32, bench=False)
    yield case(70, 1, 16, 16, [2], [40], f32, bench=False)
    for context in (1024, 8192):
        yield case(16, 16, 128, 16, [1], [context], bf16, bench=True)
        yield case(32, 4, 128, 16, [1] * 4, [context] * 4, bf16, bench=True)
    yield case(16, 16, 128, 16, [512], [512], bf16, bench=True)
    yield case(32, 4, 128, 16, [512], [4096], bf16, bench=True)


def route_cases() -> Iterator[Case]:
    for T, E, K in ((1, 8, 2), (3, 8, 1), (5, 64, 8), (17, 60, 4), (40, 128, 8), (2, 4, 4)):
        scorings: tuple[Scoring, ...] = ("softmax", "softmax_topk")
        for scoring in scorings:
            for renormalise in (False, True):

                def build(g: Generator, source: Source, T: int = T, E: int = E) -> Inputs:
                    logits = normal(g, T, E) * 2
                    logits[:, 1] = logits[:, 0] = 4.0  # a tie at the top: the lower id first
                    return {"logits": logits}

                yield Case(
                    op="route",
                    name=f"{T}x{E} top {K} {scoring}{' renormalised' if renormalise else ''}",
                    build=build,
                    call=lambda ops, i, K=K, s=scoring, r=renormalise: list(ops.route(i["logits"], K, s, r)),  # type: ignore[misc]
                    allowed=relative(E / 4 + 32),
                )


def experts_cases() -> Iterator[Case]:
    def case(form: Format, E: int, D: int, F: int, T: int, K: int, kind: str = "", bench: bool = False) -> Case:
        layout = ExpertLayout(format=form, hidden=D, width=F)

        def build(g: Generator, source: Source) -> Inputs:
            ids, weights = routing(g, T, E, K)
            if kind == "crowded":  # every token's first choice is the same expert
                ids[:, 1:] = torch.where(ids[:, 1:] == 3, ids[:, :1], ids[:, 1:])
                ids[:, 0] = 3
            elif kind == "one":
                ids.fill_(E - 1)
            return {"x": normal(g, T, D), "ids": ids, "weights": weights, "bank": source.bank(layout, E)}

        return Case(
            op="experts",
            name=f"{form.name} {E}x{D}x{F} {T} tokens top {K}{' ' + kind if kind else ''}",
            build=build,
            call=lambda ops, i: [ops.experts(i["x"], i["ids"], i["weights"], i["bank"])],
            allowed=experts_error,
            bytes=min(E, T * K) * layout.bytes,  # exact for one token; the benchmark counts the ids
            flops=6 * T * K * D * F,
            bench=bench,
        )

    for form in FORMATS.values():
        yield case(form, 4, 32, 96, 1, 1)
        yield case(form, 8, 160, 96, 1, 2)
        yield case(form, 8, 96, 160, 3, 8)
        yield case(form, 16, 160, 32, 17, 2)
        yield case(form, 8, 64, 96, 40, 2, "crowded")
        yield case(form, 5, 64, 32, 5, 1, "one")
        yield case(form, 3, 96, 64, 64, 1, "one")
        yield case(form, 4, 544, 96, 33, 2)
        yield case(form, 6, 160, 160, 200, 3, "crowded")
    yield case(FORMATS["f32"], 4, 33, 21, 5, 2)
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
    makers = (quantize_cases, unpack_cases, pointwise_cases, head_cases, kv_write_cases, linear_cases, linear_view_case,
              attention_cases, route_cases, experts_cases)  # fmt: skip
    return [case for maker in makers for case in maker()]


CASES = all_cases()
