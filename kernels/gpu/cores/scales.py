"""Factors and minimums of block formats, as float32: what lies in front of the codes of a row (`kernels/formats.py`).

A weight is factor * value + minimum. Kernels ask for those of a block of 32 weights, or of one of its halves where a
format has factors for 16. Integers become floats as in `codes.py`; a product of a half and an integer is rounded once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .codes import moved
from .constants import about


@triton.jit
def fetch(ptr, at, here, FLAT: tl.constexpr):
    """Numbers at `at`, where they are `here`: both [A, B]. FLAT: loaded in one dimension, where neighbours in memory
    are not gathered into one thread, to be dealt out again through shared memory."""
    if FLAT:
        A: tl.constexpr = here.shape[0]
        B: tl.constexpr = here.shape[1]
        at = tl.reshape(tl.broadcast_to(at, [A, B]), [A * B])
        return tl.reshape(tl.load(ptr + at, mask=tl.reshape(here, [A * B]), other=0), [A, B])
    else:
        return tl.load(ptr + at, mask=here, other=0)


@triton.jit
def number(small):
    """Integers of up to 22 bits, int32, as float32."""
    return (small | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def within(s_ptr, rows, place, here):
    """The word of 4 bytes that byte `place` of the rows lies in, moved down to it: only loads of 4 bytes can be fetched
    ahead. Rows begin at multiples of 4 bytes, and end at one."""
    words = tl.load(s_ptr.to(tl.pointer_type(tl.int32)) + (rows // 4 + place // 4), mask=here, other=0)
    return words >> (place % 4 * 8)


@triton.jit
def of_bits(bits, HALF: tl.constexpr):
    """Halves, int16, as float32."""
    if HALF == "bf16":
        return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return bits.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def byte(s_ptr, rows, place, here, FLAT: tl.constexpr):
    """Byte `place` of the rows, as int32."""
    if FLAT:
        return fetch(s_ptr, rows + place, here, FLAT).to(tl.int32)
    else:
        return within(s_ptr, rows, place, here) & 255


@triton.jit
def byte_of_four(s_ptr, rows, start, block, near, near_here, FLAT: tl.constexpr):
    """The same of byte `start` + block; start is a multiple of 4, so that blocks that are `near` lie in one word."""
    if FLAT:
        return fetch(s_ptr, rows + start + block, near_here, FLAT).to(tl.int32)
    else:
        return (within(s_ptr, rows, start + near // 4 * 4, near_here) >> (block % 4 * 8)) & 255


@triton.jit
def half(s_ptr, rows, index, here, FORMAT: tl.constexpr, WHOLE: tl.constexpr, FLAT: tl.constexpr):
    """Number `index` of those that begin with the rows, as `scales` has them."""
    HALF: tl.constexpr = about(FORMAT, "half")
    if HALF == "f32":
        at = (rows // 16 * 4 if WHOLE else rows // 4) + index
        found = fetch(s_ptr.to(tl.pointer_type(tl.float32)), at, here, FLAT)
    else:
        if FLAT:
            at = (rows // 16 * 8 if WHOLE else rows // 2) + index
            found = of_bits(fetch(s_ptr.to(tl.pointer_type(tl.int16)), at, here, FLAT), HALF)
        else:
            found = of_bits(within(s_ptr, rows, index * 2, here).to(tl.int16), HALF)
    return found


@triton.jit
def half_of_block(s_ptr, rows, block, here, FORMAT: tl.constexpr, WHOLE: tl.constexpr, FLAT: tl.constexpr):
    """The half that a block has for itself: those of neighbours make wide loads."""
    at = (rows // 16 * 8 if WHOLE else rows // 2) + block
    return of_bits(fetch(s_ptr.to(tl.pointer_type(tl.int16)), at, here, FLAT), about(FORMAT, "half"))


@triton.jit
def e4m3(code):
    """Floats of 8 bits, in int32, as float32."""
    bits = (moved(code, 24) & -2147483648) | (moved(code, 20) & (127 << 20))
    return tl.where((code & 127) == 127, float("nan"), bits.to(tl.float32, bitcast=True) * 1.3292279957849159e36)


@triton.jit
def power(code):
    """2^(code - 128) for codes 0 to 255: those from 2 on are exponents of floats, plus one; below, numbers are smaller
    than exponents go."""
    return tl.where(code < 2, (code + 1) << 21, (code - 1) << 23).to(tl.float32, bitcast=True)


@triton.jit
def scales(
    s_ptr, rows, block, blocks, half_block, near, here, near_here,
    FORMAT: tl.constexpr, WHOLE: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    """Factor and minimum (0 where a format has none) of blocks of rows: float32 [A, B], where they are `here` [A, B].

    rows: bytes from s_ptr (uint8) to the begin of the row, multiples of 16 if WHOLE; block: which of its `blocks`;
    half_block: 0 or 1, which half of it, where that makes a difference. near: a block for several, of the same four, so
    that what they share is loaded once, where it is `near_here`; or each block itself. FLAT: see `fetch`.
    """
    KIND: tl.constexpr = about(FORMAT, "scales")
    TOGETHER: tl.constexpr = about(FORMAT, "per") // 32
    least = 0.0
    if KIND == "half":
        if TOGETHER == 1:
            factor = half_of_block(s_ptr, rows, block, here, FORMAT, WHOLE, FLAT)
        else:
            factor = half(s_ptr, rows, near // TOGETHER, near_here, FORMAT, WHOLE, FLAT)
    elif KIND == "half_min":
        factor = half_of_block(s_ptr, rows, block, here, FORMAT, WHOLE, FLAT)
        least = half(s_ptr, rows, blocks + block, here, FORMAT, WHOLE, FLAT)
    elif KIND == "half_zero":
        runs = (blocks + TOGETHER - 1) // TOGETHER
        if TOGETHER == 1:
            factor = half_of_block(s_ptr, rows, block, here, FORMAT, WHOLE, FLAT)
            least = -(factor * number(byte(s_ptr, rows, runs * 2 + block, here, FLAT)))
        else:
            run = near // TOGETHER
            factor = half(s_ptr, rows, run, near_here, FORMAT, WHOLE, FLAT)
            least = -(factor * number(byte(s_ptr, rows, runs * 2 + run, near_here, FLAT)))
    elif KIND == "power":
        factor = power(byte_of_four(s_ptr, rows, 0, block, near, near_here, FLAT))
    elif KIND == "e4m3_16":
        unit = e4m3(byte(s_ptr, rows, 4 + block + half_block * blocks, here, FLAT))
        factor = half(s_ptr, rows, near * 0, near_here, FORMAT, WHOLE, FLAT) * unit
    else:
        factor, least = scales_of_256(
            s_ptr, rows, block, blocks, half_block, near, here, near_here, FORMAT, WHOLE, FLAT
        )
    return factor, least


@triton.jit
def scales_of_256(
    s_ptr, rows, block, blocks, half_block, near, here, near_here,
    FORMAT: tl.constexpr, WHOLE: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    """`scales` of formats with integers that count a half, of which 8 blocks share one, and one for the minimums."""
    KIND: tl.constexpr = about(FORMAT, "scales")
    all_256, least = blocks // 8, 0.0
    factor = half(s_ptr, rows, near // 8, near_here, FORMAT, WHOLE, FLAT) * about(FORMAT, "gain")
    if KIND == "byte" or KIND == "byte16":
        unit = byte(s_ptr, rows, all_256 * 2 + block + half_block * (blocks if KIND == "byte16" else 0), here, FLAT)
        factor *= number(unit ^ 128) - 128.0
    else:
        least = half(s_ptr, rows, all_256 + near // 8, near_here, FORMAT, WHOLE, FLAT)
        start = all_256 * 4
        if KIND == "six_min":
            both = byte_of_four(s_ptr, rows, start, block, near, near_here, FLAT)
            start += blocks + near // 8 * 4 - near // 4 * 4  # four bytes that 8 blocks share
            high = byte_of_four(s_ptr, rows, start, block % 4 + near // 4 * 4, near, near_here, FLAT)
            high = high >> (block % 8 // 4 * 4)
            factor *= number((both & 15) | ((high & 3) << 4))
            least *= number((both >> 4) | ((high & 12) << 2))
        else:
            both = byte_of_four(s_ptr, rows, start + half_block * blocks, block, near, near_here, FLAT)
            factor *= number(both & 15)
            least *= number(both >> 4)
    return factor, least
