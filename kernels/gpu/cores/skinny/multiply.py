"""The core of products with 1 to 16 tokens: y[r, t] = w[r] . x[t] on tensor cores, each weight read once.

Rows of weights are the rows of a product's tile, tokens its columns, 8 or 16. A step is 4 blocks of 32 columns, a
block a warp: no warp reads another one's activations, sums of all four are added when the loop is done. What a block's
weights stand for before their scale is exact in bf16 (`values.py`); the scale multiplies the block's sums, not its
weights, which is less work and rounds nothing but activations. With a minimum, the sums of activations come from a
product with ones, 128 times the factor is subtracted there, too.

Everything is fetched ahead: copies of 16 bytes of codes, words of scales, activations as they are, float32. The order
of a sum follows from the matrix alone, so that a token's bits are those that it has alone, in any batch up to 16.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..constants import about
from ..places import planes
from .values import PLAIN, values
from .words import row_factor, scales_of, words_of

STEP = tl.constexpr(4)  # blocks, and warps of a program
COLUMNS = 32 * STEP.value  # of a step
WARPS = STEP.value


@triton.jit
def plane_tile(
    w_ptr, rows, rows_ok, at, first, last,
    BYTES: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr, WHOLE: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """What a plane has of STEP blocks: BYTES each, one after the other from byte `at` of rows [N] on; as often as fits
    into WIDE: uint8 [STEP, N, WIDE]. Blocks from `last` on are not there."""
    if WHOLE:
        at = tl.multiple_of(at, 8 if BYTES == 8 else 16)
    c = tl.arange(0, STEP * WIDE)[None, :]
    mask = rows_ok[:, None]
    if not EVEN:
        mask = mask & tl.max_constancy(first + c // WIDE < last, [1, BYTES])
    found = tl.load(w_ptr + rows[:, None] + (at + c // WIDE * BYTES + c % BYTES), mask=mask, other=0)
    return tl.permute(tl.reshape(found, [N, STEP, WIDE]), (1, 0, 2))


@triton.jit
def x_tile(x_ptr, x_at, x_ok, block, block_ok, START: tl.constexpr, SIZE: tl.constexpr, EVEN: tl.constexpr):
    """Activations [STEP, SIZE, tokens] of blocks, from weight START of each on."""
    at = block[:, None, None] * 32 + (START + tl.arange(0, SIZE))[None, :, None]
    mask = x_ok[None, None, :]
    if not EVEN:
        mask = mask & block_ok[:, None, None]
    x = tl.load(x_ptr + x_at[None, None, :] + at, mask=mask, other=0.0)
    return x if PLAIN else x.to(tl.bfloat16)


@triton.jit
def block_step(
    sums, x_ptr, x_at, x_ok, w_ptr, s_ptr, rows, rows_ok, first, last, blocks,
    EVEN: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """sums [STEP, N, tokens] and what blocks `first` to first + 3 of a block format add."""
    LOW: tl.constexpr = about(FORMAT, "low")
    HIGH: tl.constexpr = about(FORMAT, "high")
    WIDE: tl.constexpr = 32 if LOW == 8 else 16
    LEAST: tl.constexpr = about(FORMAT, "minimums")
    block = first + tl.arange(0, STEP)
    block_ok = (block < last) | EVEN
    here = rows_ok[None, :] & block_ok[:, None]
    at_low, at_high = planes(first, blocks, FORMAT)
    low = plane_tile(w_ptr, rows, rows_ok, at_low * 4, first, last, 4 * LOW, WIDE, EVEN, WHOLE, N)
    high = low
    if HIGH == 1:
        at = (rows // 4)[None, :] + (at_high + tl.arange(0, STEP))[:, None]
        high = tl.load(w_ptr.to(tl.pointer_type(tl.int32)) + at, mask=here, other=0)
        high = tl.broadcast_to(high[:, :, None], [STEP, N, WIDE])
    elif HIGH == 2:
        high = plane_tile(w_ptr, rows, rows_ok, at_high * 4, first, last, 8, WIDE, EVEN, WHOLE, N)
    at = block[:, None]
    words = words_of(s_ptr, rows[None, :], at, blocks, here, FORMAT)
    x = x_tile(x_ptr, x_at, x_ok, block, block_ok, 0, WIDE, EVEN)
    factor, least = scales_of(words, at, blocks, 0, FORMAT)
    if LOW == 8:
        sums += tl.dot(values(low, high, words[4][:, :, None], FORMAT), x) * factor[:, :, None]
    else:
        x_second = x_tile(x_ptr, x_at, x_ok, block, block_ok, 16, 16, EVEN)
        if LEAST:
            w, w_second, ones = values(low, high, words[4][:, :, None], FORMAT)
            least -= 128.0 * factor
        else:
            w, w_second = values(low, high, words[4][:, :, None], FORMAT)
        if about(FORMAT, "per") == 16:
            second, least_second = scales_of(words, at, blocks, 1, FORMAT)
            sums += tl.dot(w, x) * factor[:, :, None] + tl.dot(w_second, x_second) * second[:, :, None]
            if LEAST:
                least_second -= 128.0 * second
                sums += tl.dot(ones, x) * least[:, :, None] + tl.dot(ones, x_second) * least_second[:, :, None]
        else:
            sums += tl.dot(w_second, x_second, tl.dot(w, x)) * factor[:, :, None]
            if LEAST:
                sums += tl.dot(ones, x_second, tl.dot(ones, x)) * least[:, :, None]
    return sums


@triton.jit
def plain_step(
    sums, x_ptr, x_at, x_ok, w_ptr, rows, rows_ok, first, cols,
    EVEN: tl.constexpr, N: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """The same of weights of bf16."""
    c = first * 32 + tl.arange(0, STEP * 32)
    mask, x_mask = rows_ok[:, None], x_ok[None, :]
    if not EVEN:
        mask, x_mask = mask & (c < cols)[None, :], x_mask & (c < cols)[:, None]
    w = tl.load(w_ptr + rows[:, None] + c[None, :], mask=mask, other=0.0)
    x = tl.load(x_ptr + x_at[None, :] + c[:, None], mask=x_mask, other=0.0)
    w = tl.permute(tl.reshape(w, [N, STEP, 32]), (1, 0, 2))
    x = tl.reshape(x, [STEP, 32, TOKENS])
    return tl.dot(w.to(tl.float32), x, sums) if PLAIN else tl.dot(w, x.to(tl.bfloat16), sums)


@triton.jit
def multiply(
    x_ptr, x_at, x_ok, w_ptr, s_ptr, rows, rows_ok, first, last, cols,
    EVEN: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr, N: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """N packed rows, at offsets `rows`, times TOKENS rows of activations, at offsets x_at: float32 [N, TOKENS], over
    blocks of 32 columns `first` to `last`, of a row of `cols` columns.

    rows_ok [N] and x_ok [TOKENS] say which of them exist. first is a multiple of 4; EVEN: so are the others, and a row
    is a whole number of blocks. WHOLE: rows begin at multiples of 16 bytes.
    """
    sums = tl.zeros([STEP, N, TOKENS], tl.float32)
    if about(FORMAT, "block"):
        rows = tl.multiple_of(rows, 16 if WHOLE else 4)
    for block in range(first, last, STEP):
        if about(FORMAT, "block"):
            sums = block_step(
                sums, x_ptr, x_at, x_ok, w_ptr, s_ptr, rows, rows_ok, block, last, cols // 32, EVEN, WHOLE, FORMAT, N
            )
        else:
            sums = plain_step(sums, x_ptr, x_at, x_ok, w_ptr, rows, rows_ok, block, cols, EVEN, N, TOKENS)
    y = tl.sum(sums, axis=0)
    if about(FORMAT, "scales") == "e4m3_16":
        y *= row_factor(s_ptr, rows, rows_ok)[:, None]
    return y
