"""y = x @ w.T + bias with packed weights, dequantised on the way.

Up to 16 tokens are a matter of bytes and of latency: `skinny`, each weight read once by tensor cores. Few rows would
leave a GPU idle, so rows are divided among programs, too, until there are twice as many as multiprocessors; the last
program to arrive adds the sums of all, in their order. More tokens take tiles (`many.py`), BLOCK_M at a time; programs
of neighbouring rows and the same tokens run together, in groups of GROUP blocks of tokens, so that what they share
stays in the second cache.

Weights of float32, as a router has, and of f16 lose nothing: one token, or few of a small matrix, go one by one in
float32 (`few.py`), in 32 programs a token, and get the same bits as alone. Neither has been timed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..formats import Format
from ..packed import Matrix
from . import launch
from .cores.arrivals import counters, is_last
from .cores.few import row_dots
from .cores.many import multiply
from .cores.skinny.multiply import COLUMNS, WARPS
from .cores.skinny.multiply import multiply as multiply_few
from .kernel import kernel

FEW, SMALL = 16, 4 << 20  # tokens; bytes of a matrix up to which so many of them go one by one in float32
ROWS = 4  # of a program for one token; with more, a matrix of 2048 rows would leave a large GPU idle


@kernel()
def _linear_one(
    x_ptr, w_ptr, s_ptr, bias_ptr, y_ptr, rows, cols, x_stride, stride,
    BIAS: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr,
    ROWS: tl.constexpr, GRANULES: tl.constexpr,
):  # fmt: skip
    """ROWS rows of y of one token, the second coordinate of a program."""
    token = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ok = row < rows
    at = row.to(tl.int64) * stride
    y = row_dots(x_ptr + token * x_stride, w_ptr, s_ptr, at, ok, cols, WIDTH, WHOLE, FORMAT, ROWS, GRANULES)
    if BIAS:
        y += tl.load(bias_ptr + row, mask=ok, other=0.0)
    tl.store(y_ptr + token * rows + row, y, mask=ok)


@triton.jit
def sum_of_parts(parts_ptr, into, mask, parts, step, ROWS: tl.constexpr, TOKENS: tl.constexpr):
    """What other programs left at places `into` [ROWS, TOKENS] of `parts` layers, added up in their order, eight loads
    at a time."""
    y = tl.zeros([ROWS, TOKENS], tl.float32)
    for first in range(0, parts, 8):
        for n in tl.static_range(8):
            there = parts_ptr + (first + n) * step + into
            y += tl.load(there, mask=mask & (first + n < parts), other=0.0, cache_modifier=".cg")
    return y


@kernel("tokens")
def _linear_few(
    x_ptr, w_ptr, s_ptr, bias_ptr, y_ptr, parts_ptr, count_ptr, tokens, rows, cols, x_stride, stride, blocks,
    BIAS: tl.constexpr, PARTS: tl.constexpr, EVEN: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """BLOCK_N rows of y, for all tokens, from `blocks` blocks of columns; PARTS: there are more."""
    row, token = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, TOKENS)
    row_ok, token_ok = row < rows, token < tokens
    first = tl.program_id(1) * blocks
    y = multiply_few(
        x_ptr, token.to(tl.int64) * x_stride, token_ok, w_ptr, s_ptr, row.to(tl.int64) * stride, row_ok, first,
        tl.minimum(first + blocks, tl.cdiv(cols, 32)), cols, EVEN, WHOLE, FORMAT, BLOCK_N, TOKENS,
    )  # fmt: skip
    into = token.to(tl.int64)[None, :] * rows + row[:, None]
    mask = row_ok[:, None] & token_ok[None, :]
    if PARTS:
        step = tokens.to(tl.int64) * rows
        tl.store(parts_ptr + tl.program_id(1) * step + into, y, mask=mask)
        if is_last(count_ptr + tl.program_id(0), tl.num_programs(1)):
            y = sum_of_parts(parts_ptr, into, mask, tl.num_programs(1), step, BLOCK_N, TOKENS)
            if BIAS:
                y += tl.load(bias_ptr + row, mask=row_ok, other=0.0)[:, None]
            tl.store(y_ptr + into, y, mask=mask)
    else:
        if BIAS:
            y += tl.load(bias_ptr + row, mask=row_ok, other=0.0)[:, None]
        tl.store(y_ptr + into, y, mask=mask)


@kernel("tokens")
def _linear_many(
    x_ptr, w_ptr, s_ptr, bias_ptr, y_ptr, tokens, rows, cols, x_stride, stride,
    BIAS: tl.constexpr, EVEN: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRODUCT: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    blocks_m, blocks_n = tl.cdiv(tokens, BLOCK_M), tl.cdiv(rows, BLOCK_N)
    group = tl.program_id(0) // (GROUP * blocks_n)
    size = min(blocks_m - group * GROUP, GROUP)
    inside = tl.program_id(0) % (GROUP * blocks_n)
    token = (group * GROUP + inside % size) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = inside // size * BLOCK_N + tl.arange(0, BLOCK_N)
    token_ok, row_ok = token < tokens, row < rows
    at = row.to(tl.int64) * stride
    y = multiply(
        x_ptr + token.to(tl.int64) * x_stride, token_ok, w_ptr, s_ptr, at, row_ok, cols, EVEN, WHOLE, FORMAT, BLOCK_M,
        BLOCK_N, BLOCK_K, PRODUCT,
    )  # fmt: skip
    if BIAS:
        y += tl.load(bias_ptr + row, mask=row_ok, other=0.0)[None, :]
    tl.store(y_ptr + token.to(tl.int64)[:, None] * rows + row[None, :], y, mask=token_ok[:, None] & row_ok[None, :])


def linear(x_TC: Tensor, weight: Matrix, bias_R: Tensor | None = None) -> Tensor:
    (T, C), R, form = x_TC.shape, weight.rows, weight.format
    assert x_TC.dtype == launch.F32, f"{x_TC.dtype}"
    assert weight.cols == C, f"{C} values, {weight.cols} columns"
    assert C == 1 or x_TC.stride(1) == 1, f"strides {x_TC.stride()}"
    w, y = launch.packed(weight), x_TC.new_empty(T, R)
    bias = x_TC if bias_R is None else launch.check(bias_R, launch.F32, R)
    kind = launch.product_of(form)
    if for_few(T, form, w):
        _few(x_TC, w, form, bias_R, y)
        return y
    if T == 1 or (T <= FEW and weight.nbytes <= SMALL):
        one = launch.one_token(ROWS, w.granules)
        _linear_one[(launch.cdiv(R, one["ROWS"]), T)](
            x_TC, w.words, w.scales, bias, y, R, C, x_TC.stride(0) if T > 1 else 0, w.stride,
            BIAS=bias_R is not None, **w.granules, FORMAT=form.name, **one,
        )  # fmt: skip
        return y
    x, tile = launch.operand(x_TC, kind), tile_of(T, kind, form)
    blocks = launch.cdiv(T, tile["BLOCK_M"]) * launch.cdiv(R, tile["BLOCK_N"])
    _linear_many[(blocks,)](
        x, w.values, w.scales, bias, y, T, R, C, x.stride(0), w.stride,
        BIAS=bias_R is not None, EVEN=C % tile["BLOCK_K"] == 0, WHOLE=w.whole, FORMAT=form.name, PRODUCT=kind,
        GROUP=8, **tile,
    )  # fmt: skip
    return y


def for_few(tokens: int, format: Format, rows: launch.Stored) -> bool:
    """Whether so many tokens go through `skinny`: up to 16, but of float32 and f16, which would lose bits there, and
    of bf16 in rows that begin anywhere. One token of codes in two planes, or of 2 bits, takes fewer instructions in
    `few.py`."""
    if not format.is_block:
        return tokens <= FEW and format.name == "bf16" and bool(rows.whole)
    return 1 < tokens <= FEW or (tokens == 1 and len(format.codes.planes) == 1 and format.codes.bits >= 4)


def few_tile(tokens: int, format: Format, most: int = 128) -> dict[str, int]:
    """The tile of a program for up to 16 tokens: as many rows of weights as registers allow, up to `most`, so that what
    a step takes besides is shared."""
    is_simple = format.is_block and len(format.codes.planes) == 1 and format.codes.bits >= 4
    rows = min(most, 128 if is_simple and tokens <= 8 else 64)
    return dict(BLOCK_N=rows, BLOCK_K=COLUMNS, TOKENS=8 if tokens <= 8 else 16, num_warps=WARPS, num_stages=3)


def parts_of(rows: int, cols: int, format: Format, device: torch.device) -> tuple[int, int]:
    """Into how many parts rows are divided, and blocks of each: twice as many programs as multiprocessors, if there are
    columns for them. Nothing of it follows from tokens, so that no sum does."""
    programs, steps = launch.cdiv(rows, few_tile(1, format)["BLOCK_N"]), launch.cdiv(cols, COLUMNS)
    each = launch.cdiv(steps, min(steps, launch.cdiv(2 * launch.multiprocessors(device), programs)))
    return launch.cdiv(steps, each), each * (COLUMNS // 32)


def _few(x_TC: Tensor, w: launch.Stored, format: Format, bias_R: Tensor | None, y_TR: Tensor) -> None:
    (T, C), R, tile = x_TC.shape, y_TR.shape[1], few_tile(x_TC.shape[0], format)
    programs, (parts, blocks) = launch.cdiv(R, tile["BLOCK_N"]), parts_of(R, C, format, y_TR.device)
    left = y_TR if parts == 1 else y_TR.new_empty(parts, T, R)
    count = y_TR if parts == 1 else counters(y_TR.device, "linear", programs)
    _linear_few[(programs, parts)](
        x_TC, w.values, w.scales, y_TR if bias_R is None else bias_R, y_TR, left, count, T, R, C, x_TC.stride(0),
        w.stride, blocks, BIAS=bias_R is not None, PARTS=parts > 1, EVEN=C % COLUMNS == 0, WHOLE=w.whole,
        FORMAT=format.name, **tile,
    )  # fmt: skip


def tile_of(tokens: float, kind: launch.Product, format: Format) -> dict[str, int]:
    """The tile of a program by how many tokens share a matrix: few read weights, many compute. It fits into 99 KB of
    shared memory, which is what the GPUs with the least of it have."""
    if kind == "f32" and format.is_block:  # in the interpreter alone
        return dict(BLOCK_M=16, BLOCK_N=64, BLOCK_K=128, num_warps=4, num_stages=2)
    if kind == "f32":
        return dict(BLOCK_M=16, BLOCK_N=32, BLOCK_K=32, num_warps=4, num_stages=2)
    if tokens <= 16:
        return dict(BLOCK_M=16, BLOCK_N=64, BLOCK_K=128, num_warps=4, num_stages=3)
    if tokens <= 64:
        return dict(BLOCK_M=64, BLOCK_N=64, BLOCK_K=64, num_warps=4, num_stages=3)
    # Unpacking takes registers: with 128 rows it would spill on GPUs whose tensor cores take operands from registers.
    return dict(BLOCK_M=128, BLOCK_N=64 if format.is_block else 128, BLOCK_K=64, num_warps=8, num_stages=3)
