"""Codes of block formats -> the values that they stand for, as float32, exactly, before their scale.

An integer becomes a float without a conversion, whose units are few: its bits are or-ed into the mantissa of 2^23,
which gives 2^23 + q exactly, and the offset is subtracted. One that lies k bits higher counts 2^k q; it is left there,
and multiplied by 2^-k in the instruction that subtracts. A float of 4 or 8 bits is put where a float32 has exponent and
mantissa, small numbers included, and multiplied by what the exponents are apart. A value of a table is a byte of one of
two numbers of 64 bits, moved down by eight times the code.

`value` takes codes anywhere in int32 words, for kernels that are bound by how fast instructions are issued: a word has
four bytes of a plane, and where a code lies in two planes, `joined` puts four of them together at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .constants import about


@triton.jit
def scaled(bits, AT: tl.constexpr, ZERO: tl.constexpr):
    """q - ZERO from the bits of the float 2^23 + 2^AT q; exact in every step."""
    value = bits.to(tl.float32, bitcast=True)
    if AT == 0:
        return value - (8388608.0 + ZERO)
    else:
        factor = tl.full(value.shape, 1.0 / (1 << AT), tl.float32)
        return tl.fma(value, factor, tl.full(value.shape, -(8388608.0 / (1 << AT) + ZERO), tl.float32))


@triton.jit
def moved(word, UP: tl.constexpr):
    """Bits of a word, moved up or down; what comes in from the top is to be masked."""
    if UP > 0:
        return word << UP
    elif UP < 0:
        return word >> -UP
    else:
        return word


@triton.jit
def value(word, BIT: tl.constexpr, FORMAT: tl.constexpr):
    """What the codes stand for that begin at bit BIT of int32 words. A mantissa has room for the lower 23 bits in
    place; what lies higher is moved down."""
    BITS: tl.constexpr = about(FORMAT, "low") + about(FORMAT, "high")
    VALUES: tl.constexpr = about(FORMAT, "values")
    if VALUES == "integer":
        DOWN: tl.constexpr = 16 if BIT + BITS > 23 else 0
        if BITS == 8:
            word = word ^ -2139062144  # the top bit of every byte: q + 128
        bits = ((word >> DOWN) & (((1 << BITS) - 1) << (BIT - DOWN))) | 0x4B000000
        return scaled(bits, BIT - DOWN, about(FORMAT, "offset"))
    elif VALUES == "e2m1":
        bits = (moved(word, 28 - BIT) & -2147483648) | (moved(word, 22 - BIT) & (7 << 22))
        return bits.to(tl.float32, bitcast=True) * 1.7014118346046923e38  # 2^127: the values are doubled
    elif VALUES == "e4m3":
        bits = (moved(word, 24 - BIT) & -2147483648) | (moved(word, 20 - BIT) & (127 << 20))
        return bits.to(tl.float32, bitcast=True) * 1.3292279957849159e36  # 2^120
    else:
        FIRST: tl.constexpr = about(FORMAT, "first")
        SECOND: tl.constexpr = about(FORMAT, "second")
        half = tl.where(moved(word, 28 - BIT) < 0, tl.full([], SECOND, tl.int64), tl.full([], FIRST, tl.int64))
        found = (half >> (moved(word, 3 - BIT) & 56).to(tl.int64)).to(tl.int32) & 255
        return scaled(found | 0x4B000000, 0, 128)


@triton.jit
def decode(code, FORMAT: tl.constexpr):
    """What codes, int32, stand for; those of e4m3 may be no number."""
    w = value(code, 0, FORMAT)
    if about(FORMAT, "values") == "e4m3":
        w = tl.where((code & 127) == 127, float("nan"), w)
    return w


@triton.jit
def joined(low, high, PLACE_LOW: tl.constexpr, PLACE_HIGH: tl.constexpr, FORMAT: tl.constexpr):
    """A word of four codes, one a byte, from a field of a word of each plane, by their numbers."""
    LOW: tl.constexpr = about(FORMAT, "low")
    HIGH: tl.constexpr = about(FORMAT, "high")
    bits = moved(low, -LOW * PLACE_LOW) & (((1 << LOW) - 1) * 0x01010101)
    return bits | (moved(high, LOW - HIGH * PLACE_HIGH) & ((((1 << HIGH) - 1) << LOW) * 0x01010101))


@triton.jit
def not_numbers(word):
    """Bits that are set where one of the four floats e4m3 of int32 words is no number."""
    return ((word & 0x7F7F7F7F) + 0x01010101) & -2139062144
