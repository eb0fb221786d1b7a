"""y = x @ w.T + bias with packed weights, dequantised on the way.

One token is a matter of bytes: `row_dots`. More tokens go through tensor cores, BLOCK_M at a time, so that up to 16 of
them still read each weight once. Programs of neighbouring rows and the same tokens run together, in groups of GROUP
blocks of tokens, so that what they share stays in the second cache. A small matrix of float32, as a router is, would be
4 programs of 64 steps each, with three tf32 products for one; few tokens take it one by one instead, in 32 programs a
token, from the second cache, and get the same bits as alone. Neither has been timed.
"""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from ..formats import Format
from ..packed import Matrix
from . import launch
from .cores.few import row_dots
from .cores.many import multiply
from .kernel import kernel

FEW, SMALL = 16, 4 << 20  # tokens, and bytes of a matrix, up to which float32 goes token by token
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
    if T == 1 or (T <= FEW and kind == "f32" and weight.nbytes <= SMALL):
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
