"""Factors and minimums as `scales.py` has them, in two steps: the words of 4 bytes that they lie in, then what these
say.

Loads of 4 bytes are the shortest that can be fetched ahead. Loops of products load words, which compilers then may
read from shared memory in any layout, and take factors from them where sums lie.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..constants import about
from ..scales import e4m3, number, of_bits, power


@triton.jit
def places_of(block, blocks, FORMAT: tl.constexpr):
    """The bytes of a row, of `blocks` blocks, that say what is added or multiplied: of a half that a block or more
    share, of a second one, and of the integers of both halves of the block. What a format has not is the first."""
    KIND: tl.constexpr = about(FORMAT, "scales")
    TOGETHER: tl.constexpr = about(FORMAT, "per") // 32
    if KIND == "half":
        first = block // TOGETHER * (4 if about(FORMAT, "half") == "f32" else 2)
        return first, first, first, first
    elif KIND == "half_min":
        return block * 2, (blocks + block) * 2, block * 2, block * 2
    elif KIND == "half_zero":
        runs, run = (blocks + TOGETHER - 1) // TOGETHER, block // TOGETHER
        return run * 2, runs * 2 + run, run * 2, run * 2
    elif KIND == "power":
        return block, block, block, block
    elif KIND == "e4m3_16":
        return 4 + block, 4 + block, 4 + block, 4 + blocks + block
    else:
        all_256, of_256 = blocks // 8, block // 8
        first, second = of_256 * 2, (all_256 + of_256) * 2
        if KIND == "byte":
            return first, first, all_256 * 2 + block, first
        elif KIND == "byte16":
            return first, first, all_256 * 2 + block, all_256 * 2 + blocks + block
        elif KIND == "six_min":
            return first, second, all_256 * 4 + block, all_256 * 4 + blocks + of_256 * 4 + block % 4
        else:
            return first, second, all_256 * 4 + block, all_256 * 4 + blocks + block


@triton.jit
def word_at(s_ptr, rows, place, here):
    return tl.load(s_ptr.to(tl.pointer_type(tl.int32)) + (rows // 4 + place // 4), mask=here, other=0)


@triton.jit
def words_of(s_ptr, rows, block, blocks, here, FORMAT: tl.constexpr):
    """The words of blocks [S, 1] of rows [1, N], at offsets of bytes, where they are `here` [S, N]: int32 [S, N], one
    for each of `places_of`, and one that follows from all of them."""
    KIND: tl.constexpr = about(FORMAT, "scales")
    a, b, c, d = places_of(block, blocks, FORMAT)
    first = word_at(s_ptr, rows, a, here)
    second, third, fourth, every = first, first, first, first
    if about(FORMAT, "minimums"):
        second = word_at(s_ptr, rows, b, here)
        every = every ^ second
    if KIND == "byte" or KIND == "byte16" or KIND == "six_min" or KIND == "nibble16_min":
        third = word_at(s_ptr, rows, c, here)
        every = every ^ third
    if KIND == "e4m3_16" or KIND == "byte16" or KIND == "six_min" or KIND == "nibble16_min":
        fourth = word_at(s_ptr, rows, d, here)
        every = every ^ fourth
    return first, second, third, fourth, every


@triton.jit
def half_of(word, place, FORMAT: tl.constexpr):
    """The half at byte `place`."""
    if about(FORMAT, "half") == "f32":
        return word.to(tl.float32, bitcast=True)
    else:
        return of_bits((word >> (place % 4 * 8)).to(tl.int16), about(FORMAT, "half"))


@triton.jit
def byte_of(word, place):
    return (word >> (place % 4 * 8)) & 255


@triton.jit
def scales_of(words, block, blocks, HALF: tl.constexpr, FORMAT: tl.constexpr):
    """Factor and minimum (0 where a format has none) of a half of each block: float32 [S, N]; without what a whole row
    is multiplied by (`row_factor`)."""
    KIND: tl.constexpr = about(FORMAT, "scales")
    first, second, third, fourth, _every = words
    a, b, c, d = places_of(block, blocks, FORMAT)
    least = 0.0
    if KIND == "power":
        factor = power(byte_of(first, a))
    elif KIND == "e4m3_16":
        factor = e4m3(byte_of(first, a) if HALF == 0 else byte_of(fourth, d))
    else:
        factor = half_of(first, a, FORMAT)
    if KIND == "half_min":
        least = half_of(second, b, FORMAT)
    elif KIND == "half_zero":
        least = -(factor * number(byte_of(second, b)))
    elif KIND == "byte" or KIND == "byte16":
        unit = byte_of(third, c) if HALF == 0 or KIND == "byte" else byte_of(fourth, d)
        factor *= about(FORMAT, "gain") * (number(unit ^ 128) - 128.0)
    elif KIND == "six_min":
        least, both = half_of(second, b, FORMAT), byte_of(third, c)
        high = byte_of(fourth, d) >> (block % 8 // 4 * 4)
        factor *= number((both & 15) | ((high & 3) << 4))
        least *= number((both >> 4) | ((high & 12) << 2))
    elif KIND == "nibble16_min":
        both = byte_of(third, c) if HALF == 0 else byte_of(fourth, d)
        least = half_of(second, b, FORMAT) * number(both >> 4)
        factor *= number(both & 15)
    return factor, least


@triton.jit
def row_factor(s_ptr, rows, rows_ok):
    """What e4m3_16 multiplies whole rows by: float32 [N]."""
    return word_at(s_ptr, rows, 0, rows_ok).to(tl.float32, bitcast=True)
