"""What a case of an op is, where its weights come from, and how far a kernel may be from the twin.

Tolerances are per output value, with u = 2^-24 (float32) and no free constants but the ones below:

    sum of n products     |error| <= (n / 4 + 8) u * sum |w x|: the longest chain of additions is n / 4 (four lanes, the
                          narrowest kernel), and 8 more join lanes and scale. The twin may err as much again, hence 2 x.
    block formats         where an ISA multiplies unsigned codes (value + o) and takes o * sum x away, rounding acts on
                          larger terms: |w| becomes |w| + 2 o d, d the factor. o is the codes' offset; 128 for bytes and
                          for values of a table. A minimum m is a term of its own: + 2 |m|.
    int8 activations      x = s q + e, e uniform in +-s / 2, s = max|x| / 127 per 32: the error of sum w x has standard
                          deviation sqrt(sum w^2 s^2 / 12); 6 of them are allowed. An MLP passes the variances on. Where
                          codes are floats (fp8) some ISAs round activations to bf16 instead, as in bf16 tiles.
    bf16 tiles            with many tokens some ISAs round activations, and the weights of block formats unless codes
                          are floats, to bf16: an error uniform in +-ulp / 2, ulp <= 2^-7 |x|; variances as for int8.
                          `Inputs["tiles"]` says from how many tokens on (the tests ask the ISA).
    int8 tiles            with block formats, unless activations are not to be rounded to int8: those as above, per 32
                          or per 256, as `Inputs["tile_groups"]` says; where it is 256, weights become int8 too, with
                          one scale for 256, s = the largest block scale among them (of q4_0, whose quants reach 8, that
                          times 8 / 127).
    softmax, exp          exp is good to 2^-22 of itself, a score off by e changes a weight by e of itself.

What a kernel must reproduce exactly (packing, unpacking, embedding, cache writes) has tolerance 0.

What a backend rounds is said by keys that its test adds to a case's inputs: "tiles" (format -> tokens from which tiles
are used), "tile_groups" (format -> columns that share a scale of int8 in tiles; absent or 0: bf16), "tile_rows" (rows
from which they are, 16 if absent), "activations" ("bf16": not rounded to int8), "attention" (relative rounding of
queries and of probabilities, 0 if absent).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from .. import Ops, blocks
from .. import reference as ref
from ..formats import BLOCK, FORMATS, PARTS, ExpertLayout, Format, Part
from ..packed import ExpertBank, Matrix

U = 2.0**-24
SIGMAS = 6.0
TILE_ROWS = 16  # a matrix with fewer rows never goes through the CPU's tiles
BASIC = tuple(FORMATS[name] for name in ("f32", "f16", "bf16", "q8_0", "q4_0"))  # with cases of every shape
TILE_GROUP = 256  # columns that share a scale in int8 tiles
BYTE_OFFSET = 128.0  # of signed bytes as unsigned ones


class Way(Enum):
    """How a matrix is multiplied: activations as they are; rounded to int8 per 32 for block formats, as by dot
    products; by tiles that round in another way."""

    AS_THEY_ARE = 0
    DOTS = 1
    BF16_TILES = 2
    INT8_TILES = 3


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
            for part in layout.parts:
                into, bias = bank.matrix(expert, part), bank.bias(expert, part)
                into.data.copy_(self.matrix(into.format, into.rows, into.cols).data)
                if bias is not None:
                    bias.copy_(torch.randn(bias.shape, generator=self.generator) * 0.5)
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
    """The size of the factor of every weight of a block format, float32 [R, C]."""
    found = blocks.split(matrix.data, matrix.format, matrix.cols)
    return blocks.spread(blocks.factors(found).abs(), found)


def magnitude(matrix: Matrix) -> Tensor:
    """|w| as rounding sees it: with the offset of unsigned codes, and minimums as terms of their own."""
    values, form = ref.dequantize(matrix).abs(), matrix.format
    if not form.is_block:
        return values
    if form.codes.are_floats:
        return values
    offset = BYTE_OFFSET if form.bits == 8 or form.codes.table else form.codes.offset
    found = values + 2 * offset * scales(matrix)
    said = blocks.split(matrix.data, form, matrix.cols)
    least = blocks.minimums(said)
    return found if least is None else found + 2 * blocks.spread(least.abs(), said)


def quant_variance(x_TC: Tensor, group: int) -> Tensor:
    """Variance of the error of activations as int8 per `group`: s^2 / 12."""
    T, C = x_TC.shape
    padded = torch.nn.functional.pad(x_TC.abs(), (0, -C % group))
    step = padded.reshape(T, -1, group).amax(-1) / 127.0
    return (step.square() / 12.0).repeat_interleave(group, 1)[:, :C]


def weight_variance(w: Matrix) -> Tensor:
    """Variance of the error of a block format's weights as int8 per TILE_GROUP: s^2 / 12."""
    R, C = w.rows, w.cols
    padded = torch.nn.functional.pad(scales(w), (0, -C % TILE_GROUP))
    step = padded.reshape(R, -1, TILE_GROUP).amax(-1) * (8 / 127 if w.format.name == "q4_0" else 1.0)
    return (step.square() / 12.0).repeat_interleave(TILE_GROUP, 1)[:, :C]


def bf16_variance(values: Tensor) -> Tensor:
    """Variance of the error of rounding to bf16: ulp^2 / 12."""
    return (values * 2.0**-7).square() / 12.0


def noise_of(x_TC: Tensor, w: Matrix, way: Way, exact: bool = False) -> Tensor:
    """Variance of x @ w.T from rounding activations (none if they are `exact` in any format) and, in tiles, weights."""
    is_block = w.format.is_block
    if way is Way.AS_THEY_ARE or (way is Way.DOTS and not is_block):
        return x_TC.new_zeros(len(x_TC), w.rows)
    if exact:
        noise = torch.zeros_like(x_TC)
    elif way is Way.DOTS:
        noise = bf16_variance(x_TC) if w.format.codes.are_floats else quant_variance(x_TC, BLOCK)
    else:
        noise = quant_variance(x_TC, TILE_GROUP) if way is Way.INT8_TILES else bf16_variance(x_TC)
    weights = ref.dequantize(w)
    variance = noise @ weights.square().T
    if is_block and not w.format.codes.are_floats and way in (Way.BF16_TILES, Way.INT8_TILES):
        moved = weight_variance(w) if way is Way.INT8_TILES else bf16_variance(weights)
        variance = variance + x_TC.square() @ moved.T
    return variance


def rounding_of(x_TC: Tensor, w: Matrix) -> Tensor:
    """What float32 arithmetic may lose of x @ w.T."""
    return x_TC.abs() @ magnitude(w).T * sum_error(w.cols)


def way_of(i: Inputs, format: Format, tokens: int) -> Way:
    """How so many tokens of one matrix are multiplied, by what the inputs say of the backend."""
    least: int = i.get("tiles", {}).get(format.name, 0)
    is_exact = i.get("activations") == "bf16"
    if not (least > 0 and tokens >= least):
        return Way.AS_THEY_ARE if is_exact else Way.DOTS
    group: int = i.get("tile_groups", {}).get(format.name, 0)
    return {0: Way.BF16_TILES, BLOCK: Way.DOTS, TILE_GROUP: Way.INT8_TILES}[group]


def linear_error(i: Inputs, exact: bool = False) -> Tensor:
    x, w = i["x"].contiguous(), i["w"]
    tokens = x.shape[0] if w.rows >= i.get("tile_rows", TILE_ROWS) else 0
    return rounding_of(x, w) + SIGMAS * noise_of(x, w, way_of(i, w.format, tokens), exact).sqrt()


def mlp_error(x_TD: Tensor, bank: ExpertBank, expert: int, way: Way) -> tuple[Tensor, Tensor]:
    """Variance and rounding bound of one expert's output. The slope of g * sigmoid(alpha g) is at most 1.1, that of g *
    sigmoid(alpha (g + cubic g^3)) with GeGLU's numbers 1.13, a clamp's
    1; adding a bias or an offset loses u of both terms."""
    if not bank.layout.activation.gated:
        return _ungated_error(x_TD, bank, expert, way)
    gate, up, down = (bank.matrix(expert, part) for part in PARTS)
    of_gate, of_up, of_down = (_bias(bank, expert, part) for part in PARTS)
    how = bank.layout.activation
    g, u = ref.linear(x_TD, gate) + of_gate, ref.linear(x_TD, up) + of_up
    lost_g, lost_u = (2 * U * (y.abs() + bias.abs()) for y, bias in ((g, of_gate), (u, of_up)))
    g, u = g.clamp(max=how.limit), u.clamp(-how.limit, how.limit)
    lost_u = lost_u + 2 * U * (u.abs() + abs(how.offset)) * bool(how.offset)
    slope, curved = (1.13, g * (1 + how.cubic * g * g)) if how.cubic else (1.1, g)
    a, b = (slope * (u + how.offset)).abs(), (g * torch.sigmoid(how.alpha * curved)).abs()
    h, weights = b * (u + how.offset), ref.dequantize(down)
    variance = a.square() * noise_of(x_TD, gate, way)
    variance = variance + b.square() * noise_of(x_TD, up, way)
    rounding = a * (rounding_of(x_TD, gate) + lost_g) + b * (rounding_of(x_TD, up) + lost_u) + h.abs() * 32 * U
    rounding = rounding @ weights.abs().T + rounding_of(h, down)
    rounding = rounding + (h.abs() @ weights.abs().T + of_down.abs()) * 2 * U * bank.layout.biased
    return variance @ weights.square().T + noise_of(h, down, way), rounding


def _ungated_error(x_TD: Tensor, bank: ExpertBank, expert: int, way: Way) -> tuple[Tensor, Tensor]:
    """The same of an expert without a gate: the slope of relu(u)^2 is 2 relu(u)."""
    up, down = bank.matrix(expert, "up"), bank.matrix(expert, "down")
    u, weights = ref.linear(x_TD, up).relu(), ref.dequantize(down)
    h = u.square()
    noise, lost = noise_of(x_TD, up, way), rounding_of(x_TD, up)
    # Where u is near 0 an error is squared alone.
    variance = 4 * (u.square() + SIGMAS**2 * noise) * noise
    rounding = (2 * u + lost) * lost + h * 2 * U
    rounding = rounding @ weights.abs().T + rounding_of(h, down)
    return variance @ weights.square().T + noise_of(h, down, way), rounding


def _bias(bank: ExpertBank, expert: int, part: Part) -> Tensor:
    bias = bank.bias(expert, part)
    return torch.zeros(bank.layout.shape(part)[0], device=bank.data.device) if bias is None else bias


def experts_error(i: Inputs, out: list[Tensor]) -> list[Tensor | float]:
    x, ids, weights, bank = i["x"], i["ids"], i["weights"], i["bank"]
    variance, rounding = torch.zeros_like(x), torch.zeros_like(x)
    for expert in sorted(set(ids.flatten().tolist()) - {-1}):
        token, slot = torch.where(ids == expert)
        w = weights[token, slot].unsqueeze(1).abs()
        way = way_of(i, bank.layout.format, token.numel())
        taken, w = (x[token] * w, torch.ones_like(w)) if bank.layout.weighs_input else (x[token], w)
        var, rnd = mlp_error(taken, bank, expert, way)
        variance.index_add_(0, token, var * w.square())
        rounding.index_add_(0, token, rnd * w)
    return [SIGMAS * variance.sqrt() + rounding * 2]


def relative(n: float) -> Callable[[Inputs, list[Tensor]], list[Tensor | float]]:
    """n roundings, as a share of each value; the smallest normal numbers may be lost."""
    return lambda i, out: [o.abs() * (n * U) + 1e-37 if o.is_floating_point() else 0.0 for o in out]


def worst(got: Tensor, expected: Tensor, allowed: Tensor | float) -> str | None:
    """What is most out of bounds, as text; None if nothing is. Equal infinities and two NaNs are no difference."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return f"got {got.dtype} {list(got.shape)}, expected {expected.dtype} {list(expected.shape)}"
    got, expected = got.double(), expected.double()
    limit = torch.as_tensor(allowed, dtype=torch.float64, device=expected.device).expand_as(expected)
    excess = ((got - expected).abs() - limit).nan_to_num(nan=float("inf"))
    excess[got == expected] = -1.0
    excess[got.isnan() & expected.isnan()] = -1.0
    if excess.numel() == 0 or excess.max() <= 0:
        return None
    flat = int(excess.argmax())
    where = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), expected.shape))
    values = got.flatten()[flat], expected.flatten()[flat], limit.flatten()[flat]
    text = "at {}: got {:.9g}, expected {:.9g}, allowed {:.3g}".format(where, *(float(v) for v in values))
    return f"{text}; {int((excess > 0).sum())} of {excess.numel()} values are out of bounds"


# Inputs


def normal(g: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g)


def exact_activations(g: Generator, T: int, C: int) -> Tensor:
    """Whole numbers with a 127 in every 32: int8 per 32 represents them exactly, with scale 1."""
    x = torch.randint(-127, 128, (T, C), generator=g).float()
    x[:, ::32] = 127.0
    return x


def routing(g: Generator, T: int, E: int, K: int) -> tuple[Tensor, Tensor]:
    scores = torch.rand(T, E, generator=g)
    weights, ids = scores.topk(K, dim=-1)
    return ids.to(torch.int32).contiguous(), (weights / weights.sum(-1, keepdim=True)).contiguous()


def starts_of(new: list[int]) -> Tensor:
    """Where the new tokens of each sequence begin, and where they end: int32 [S + 1]."""
    return torch.tensor([0, *torch.tensor(new).cumsum(0).tolist()], dtype=torch.int32)


def fresh(i: Inputs, name: str) -> Tensor:
    """What an op may write into: a copy, or the input itself where only the time matters."""
    tensor: Tensor = i[name]
    return tensor if i.get("in_place") else tensor.clone()
