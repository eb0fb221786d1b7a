"""Each head's own product: y[t, n] = x[t, n] @ w_n.T, with packed weights, one head's rows after the other's.

As `linear.py`: up to 16 tokens by `skinny`, more by tiles, the head a coordinate of the program. There are heads
enough, so rows are not divided.
"""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from ...packed import Matrix
from .. import launch
from ..cores.many import multiply
from ..cores.skinny.multiply import multiply as multiply_few
from ..kernel import kernel
from ..linear import few_tile, for_few, tile_of


@kernel("tokens")
def _by_head_few(
    x_ptr, w_ptr, s_ptr, y_ptr, tokens, rows, cols, x_stride, head_stride, stride,
    EVEN: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    TOKENS: tl.constexpr,
):  # fmt: skip
    heads, head = tl.num_programs(1), tl.program_id(1).to(tl.int64)
    row, token = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, TOKENS)
    row_ok, token_ok, token = row < rows, token < tokens, token.to(tl.int64)
    y = multiply_few(
        x_ptr, token * x_stride + head * head_stride, token_ok, w_ptr, s_ptr, (head * rows + row) * stride, row_ok, 0,
        tl.cdiv(cols, 32), cols, EVEN, WHOLE, FORMAT, BLOCK_N, TOKENS,
    )  # fmt: skip
    into = y_ptr + (token[None, :] * heads + head) * rows + row[:, None]
    tl.store(into, y, mask=row_ok[:, None] & token_ok[None, :])


@kernel("tokens")
def _by_head_many(
    x_ptr, w_ptr, s_ptr, y_ptr, tokens, heads, rows, cols, x_stride, head_stride, stride,
    EVEN: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Programs of neighbouring rows and the same tokens of one head run together."""
    blocks, head = tl.cdiv(rows, BLOCK_N), tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    token = tl.program_id(0) // blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    token_ok, row_ok = token < tokens, row < rows
    x_rows = x_ptr + token.to(tl.int64) * x_stride + head * head_stride
    y = multiply(
        x_rows, token_ok, w_ptr, s_ptr, (head * rows + row) * stride, row_ok, cols, EVEN, WHOLE, FORMAT, BLOCK_M,
        BLOCK_N, BLOCK_K, PRODUCT,
    )  # fmt: skip
    into = y_ptr + (token.to(tl.int64)[:, None] * heads + head) * rows + row[None, :]
    tl.store(into, y, mask=token_ok[:, None] & row_ok[None, :])


def linear_by_head(x_TNc: Tensor, weight: Matrix) -> Tensor:
    (T, N, C), form = x_TNc.shape, weight.format
    assert x_TNc.dtype == launch.F32, f"{x_TNc.dtype}"
    assert weight.cols == C, f"{C} values, {weight.cols} columns"
    assert weight.rows % N == 0, f"{weight.rows} rows for {N} heads"
    assert C == 1 or x_TNc.stride(2) == 1, f"strides {x_TNc.stride()}"
    R, w = weight.rows // N, launch.packed(weight)
    y = x_TNc.new_empty(T, N, R)
    if for_few(max(T, 2), form, w):  # one token, too: of codes in two planes as of others
        few = few_tile(T, form)
        _by_head_few[(launch.cdiv(R, few["BLOCK_N"]), N)](
            x_TNc, w.values, w.scales, y, T, R, C, x_TNc.stride(0), x_TNc.stride(1), w.stride,
            EVEN=C % few["BLOCK_K"] == 0, WHOLE=w.whole, FORMAT=form.name, **few,
        )  # fmt: skip
        return y
    kind = launch.product_of(form)
    x, tile = launch.operand(x_TNc, kind), tile_of(T, kind, form)
    _by_head_many[(launch.cdiv(R, tile["BLOCK_N"]) * launch.cdiv(T, tile["BLOCK_M"]), N)](
        x, w.values, w.scales, y, T, N, R, C, x.stride(0), x.stride(1), w.stride,
        EVEN=C % tile["BLOCK_K"] == 0, WHOLE=w.whole, FORMAT=form.name, PRODUCT=kind, **tile,
    )  # fmt: skip
    return y
