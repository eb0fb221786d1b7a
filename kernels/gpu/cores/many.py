"""The core of products with many tokens: a tile of y[m, r] = w[r] . x[m] on tensor cores, weights unpacked on the way.

A step is 2 or 4 blocks of 32 columns, which lie in one group of 16 and share what 8 blocks share. Each field of the
bytes of codes is a product of its own, of the columns that lie in it, so that codes are shifted and never moved. Loads
that are fetched ahead have 4 bytes at least; hence words, of which scales are parts.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .codes import decode
from .constants import about
from .places import planes
from .scales import scales


@triton.jit
def product(a, b, sums, PRODUCT: tl.constexpr):
    """sums + a @ b, of bf16 or float32 operands."""
    if PRODUCT == "bf16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), sums)
    return tl.dot(a.to(tl.float32), b.to(tl.float32), sums, input_precision="tf32x3")


@triton.jit
def load_codes(w_ptr, rows, block, blocks, here, FORMAT: tl.constexpr):
    """What blocks [S] of rows [N] have in both planes, where they are `here` [N, S]. Of the one with the lower bits
    bytes, int32 [N, S, 4 * low bits]: byte B has weights B, B + 4 * low bits ... of its block. Of the other one, if
    there is one, one or two words of 4 bytes, [N, S, 1] each."""
    LOW: tl.constexpr = about(FORMAT, "low")
    HIGH: tl.constexpr = about(FORMAT, "high")
    at_low, at_high = planes(block, blocks, FORMAT)
    inside = (at_low * 4)[:, None] + tl.arange(0, 4 * LOW)[None, :]
    low = tl.load(w_ptr + rows[:, None, None] + inside[None, :, :], mask=here[:, :, None], other=0).to(tl.int32)
    first, second = low, low
    if HIGH > 0:
        words = w_ptr.to(tl.pointer_type(tl.int32)) + (rows // 4)[:, None] + at_high[None, :]
        first = tl.load(words, mask=here, other=0)[:, :, None]
        if HIGH == 2:
            second = tl.load(words + 1, mask=here, other=0)[:, :, None]
    return low, first, second


@triton.jit
def field(low, first, second, FIELD: tl.constexpr, FORMAT: tl.constexpr):
    """The codes in one field of the bytes that `load_codes` gives, int32 [N, S, 4 * low bits]."""
    LOW: tl.constexpr = about(FORMAT, "low")
    HIGH: tl.constexpr = about(FORMAT, "high")
    code = (low >> (LOW * FIELD)) & ((1 << LOW) - 1)
    if HIGH > 0:
        weight = 4 * LOW * FIELD + tl.arange(0, 4 * LOW)[None, None, :]
        word = first
        if HIGH == 2:
            word = tl.where(weight // 4 % 2 == 0, first, second)
        code |= ((word >> (weight % 4 * 8 + weight // (4 * HIGH) * HIGH)) & ((1 << HIGH) - 1)) << LOW
    return code


@triton.jit
def multiply_blocks(
    x_rows, x_ok, w_ptr, s_ptr, rows, rows_ok, first, cols, sums,
    EVEN: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRODUCT: tl.constexpr,
):  # fmt: skip
    """A step of `multiply` with a block format: one product for each field of the bytes of codes."""
    LOW: tl.constexpr = about(FORMAT, "low")
    HALVES: tl.constexpr = 2 if about(FORMAT, "per") == 16 else 1
    FIELDS: tl.constexpr = 8 // LOW
    SIZE: tl.constexpr = BLOCK_K // FIELDS  # weights of a field
    block, blocks = first // 32 + tl.arange(0, BLOCK_K // 32), cols // 32
    here = rows_ok[:, None] & ((block < blocks) | EVEN)[None, :]
    low, one, two = load_codes(w_ptr, rows, block, blocks, here, FORMAT)
    e = tl.arange(0, SIZE)
    for part in tl.static_range(HALVES):
        factor, least = scales(
            s_ptr, rows[:, None], block[None, :], blocks, part, first // 32, here, rows_ok[:, None],
            FORMAT, WHOLE, False,
        )  # fmt: skip
        for number in tl.static_range(part * FIELDS // HALVES, (part + 1) * FIELDS // HALVES):
            w = decode(field(low, one, two, number, FORMAT), FORMAT) * factor[:, :, None]
            if about(FORMAT, "minimums"):
                w += least[:, :, None]
            column = first + e // (4 * LOW) * 32 + 4 * LOW * number + e % (4 * LOW)
            x_mask = x_ok[:, None] & ((column < cols) | EVEN)[None, :]
            x = tl.load(x_rows[:, None] + column[None, :], mask=x_mask, other=0.0)
            sums = product(x, tl.trans(tl.reshape(w, [BLOCK_N, SIZE])), sums, PRODUCT)
    return sums


@triton.jit
def multiply(
    x_rows, x_ok, w_ptr, s_ptr, rows, rows_ok, cols,
    EVEN: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows of activations times BLOCK_N packed rows, at offsets `rows`: float32 [BLOCK_M, BLOCK_N]; BLOCK_K
    columns at a time.

    EVEN: a row is a whole number of such steps. Masks then say nothing about columns, and scales, whose loads are
    short, are fetched ahead as the rest is. WHOLE: rows begin at multiples of 16 bytes.
    """
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, cols, BLOCK_K):
        if about(FORMAT, "block"):
            sums = multiply_blocks(
                x_rows, x_ok, w_ptr, s_ptr, rows, rows_ok, first, cols, sums,
                EVEN, WHOLE, FORMAT, BLOCK_N, BLOCK_K, PRODUCT,
            )  # fmt: skip
        else:
            e = first + tl.arange(0, BLOCK_K)
            ok = (e < cols) | EVEN
            w = tl.load(w_ptr + rows[:, None] + e[None, :], mask=rows_ok[:, None] & ok[None, :], other=0.0)
            x = tl.load(x_rows[:, None] + e[None, :], mask=x_ok[:, None] & ok[None, :], other=0.0)
            sums = product(x, tl.trans(w), sums, PRODUCT)
    return sums
