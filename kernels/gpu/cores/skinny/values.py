"""Bytes of codes -> bf16 values for tensor cores, exactly, before their scale: four weights at a time, as they lie in a
word.

Weight 16 h + j of a block of 32 has its bits in both halves h of it alike: a plane of k bits has them in byte j % 4k,
from bit 4 h + k (j / 4k) on (`kernels/formats.py`). So a kernel holds the bytes of 16 weights, j = 0 to 15, moves them
down by k (j / 4k), and takes both halves from them by masks over whole words.

A code q below 128 becomes bf16 by a byte in front of it: 0x43 makes it 128 + q. The eighth bit says whether 128 more
are subtracted. A float of 4 or 8 bits goes where bf16 has exponent and mantissa, and is multiplied by what the
exponents are apart. A table of up to 16 bytes lies in four registers, of which a permutation takes four bytes by four
codes.

Compilers would take several instructions for what one does for two or four weights here, hence the assembler. The
interpreter knows none: `plain` says the same in Triton's own words. Where a format has minimums, values are 128 too
large, since what belongs to the minimum is subtracted for 16 weights at once (`multiply.py`).
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ...kernel import INTERPRETED
from ..codes import decode
from ..constants import CONSTANTS, about

PLAIN = tl.constexpr(INTERPRETED)
Said = dict[str, Any]
Outs = tuple[str, str]


def _every(byte: int) -> str:
    """A byte four times."""
    return f"0x{byte * 0x01010101:08x}"


def _codes(low: int, high: int, minimums: bool) -> list[str]:
    """Codes of four weights of either half, a byte each: in c0 and c1. Operands: bytes of the plane with the lower
    bits; if it has less than 4, four times how far they move; then the same of the other plane, which always moves."""
    mask, at = (1 << low) - 1, 6 if minimums else 4
    lines = [f"shr.u32 a, ${at}, ${at + 1};" if low < 4 else f"mov.b32 a, ${at};"]
    lines += [f"and.b32 c0, a, {_every(mask)};", "shr.u32 a, a, 4;", f"and.b32 c1, a, {_every(mask)};"]
    if high:
        more, at = _every(((1 << high) - 1) << low), at + (5 if low < 4 else 1)
        lines += [f"shr.u32 a, ${at}, ${at + (4 if high == 1 else 1)};", f"shl.b32 b, a, {low};"]
        lines += [f"lop3.b32 c0, b, {more}, c0, 0xea;", f"shr.u32 b, a, {4 - low};"]
        lines += [f"lop3.b32 c1, b, {more}, c1, 0xea;"]
    return lines


def _from_table(code: str, values: bytes) -> list[str]:
    """Codes of up to 4 bits as bytes of a table: each half of it by three bits, then one of both by the fourth."""
    words = [int.from_bytes(values[n : n + 4], "little") ^ 0x80808080 for n in (0, 4, 8, 12)]
    return [
        f"shr.u32 a, {code}, 4;", f"or.b32 a, a, {code};", "prmt.b32 a, a, 0, 0x4420;",  # four codes in 16 bits
        "and.b32 b, a, 0x7777;", *[f"mov.b32 t{n}, 0x{word:08x};" for n, word in enumerate(words)],
        "prmt.b32 p, t0, t1, b;", "prmt.b32 q, t2, t3, b;",
        "shr.u32 a, a, 1;", "lop3.b32 a, a, 0x4444, 0x3210, 0xea;", f"prmt.b32 {code}, p, q, a;",
    ]  # fmt: skip


def _apart(code: str, above: str, both: tuple[str, str] = ("0x4140", "0x4342")) -> list[str]:
    """Four bytes as two pairs of 16 bits, p and q, with bytes of `above` beside them."""
    return [f"prmt.b32 {to}, {code}, {above}, {picked};" for to, picked in zip("pq", both, strict=True)]


def _of_integers(code: str, outs: Outs, subtracted: int) -> list[str]:
    """128 + q, less `subtracted`."""
    lines = _apart(code, _every(0x43))
    less = 0xC300 | (subtracted - 128)  # of bf16: -128 - n for an n below 128
    for to, pair in zip(outs, "pq", strict=True):
        lines.append(f"fma.rn.bf16x2 {to}, {pair}, one, t0;" if subtracted else f"mov.b32 {to}, {pair};")
    return [f"mov.b32 t0, 0x{less * 0x10001:08x};", *lines] if subtracted else lines


def _of_signed(code: str, outs: Outs) -> list[str]:
    lines = _apart(code, _every(0x43))
    for to, pair in zip(outs, "pq", strict=True):
        lines += [f"lop3.b32 a, {pair}, 0x00800080, 0xc300c300, 0xea;", f"and.b32 {pair}, {pair}, 0xff7fff7f;"]
        lines.append(f"fma.rn.bf16x2 {to}, {pair}, one, a;")
    return lines


def _of_e2m1(code: str, outs: Outs) -> list[str]:
    lines = [
        *_apart(code, "0"),
        "mov.b32 t0, 0x7f007f00;",
        "mov.b32 t1, 0x80008000;",
    ]  # 2^127, since values are doubled
    for to, pair in zip(outs, "pq", strict=True):
        lines += [f"shl.b32 a, {pair}, 12;", "and.b32 a, a, 0x80008000;", f"shl.b32 b, {pair}, 6;"]
        lines += ["lop3.b32 a, b, 0x01c001c0, a, 0xea;", f"fma.rn.bf16x2 {to}, a, t0, t1;"]
    return lines


def _of_e4m3(code: str, outs: Outs) -> list[str]:
    lines = [*_apart(code, "0", ("0x1404", "0x3424")), "mov.b32 t0, 0x7b807b80;"]  # 2^120
    lines += [f"and.b32 t1, {code}, 0x7f7f7f7f;", "add.u32 t1, t1, 0x01010101;"]  # the top bit: no number
    for to, pair, none in zip(outs, "pq", ("0x9988", "0xbbaa"), strict=True):
        lines += [f"and.b32 a, {pair}, 0x80008000;", f"shr.u32 b, {pair}, 4;", "lop3.b32 a, b, 0x07f007f0, a, 0xea;"]
        lines += [f"prmt.b32 b, t1, 0, {none};", f"fma.rn.bf16x2 {to}, a, t0, b;"]
    return lines


def _values(said: Said, code: str, outs: Outs) -> list[str]:
    if said["values"] == "e2m1":
        return _of_e2m1(code, outs)
    if said["values"] == "e4m3":
        return _of_e4m3(code, outs)
    if said["values"] == "table":
        both = (said[name].to_bytes(8, "little", signed=True) for name in ("first", "second"))
        return [*_from_table(code, b"".join(both)), *_of_signed(code, outs)]
    if said["low"] == 8:
        return _of_signed(code, outs)
    return _of_integers(code, outs, 0 if said["minimums"] else 128 + said["offset"])


def _assembler(said: Said) -> str:
    """Gives two pairs of 16 bits, and of codes of less than 8 bits, which have two halves, two more; with minimums then
    two pairs of ones."""
    low, minimums = said["low"], said["minimums"]
    lines = [".reg .b32 a, b, p, q, c0, c1, t0, t1, t2, t3, one;", "mov.b32 one, 0x3f803f80;"]
    lines += ["mov.b32 c0, $2;"] if low == 8 else _codes(low, said["high"], minimums)
    lines += _values(said, "c0", ("$0", "$1"))
    if low < 8:
        lines += _values(said, "c1", ("$2", "$3"))
    if minimums:
        lines += ["mov.b32 $4, one;", "mov.b32 $5, one;"]
    return "{\n" + "\n".join(lines) + "\n}"


ASSEMBLER = tl.constexpr(tuple((name, _assembler(dict(said))) for name, said in CONSTANTS.value if dict(said)["block"]))


@triton.constexpr_function
def assembler(format):
    """The assembler of a format."""
    return dict(ASSEMBLER.value)[format]


@triton.constexpr_function
def operands(format):
    """What the assembler gives and takes; the last four are not read."""
    low, high = about(format, "low"), about(format, "high")
    given = 2 if low == 8 else 6 if about(format, "minimums") else 4
    words = 1 + (4 if low < 4 else 0) + ((8 if high == 1 else 5) if high else 0)
    return ",".join(["=&r"] * given + ["r"] * (words + 4))


@triton.constexpr_function
def outputs(format):
    """Of which type tensors of both halves are."""
    return (tl.bfloat16,) * (3 if about(format, "minimums") else 2)


@triton.jit
def plain(low, high, HALF: tl.constexpr, FORMAT: tl.constexpr):
    """The values of a half, float32: what the assembler makes."""
    LOW: tl.constexpr = about(FORMAT, "low")
    HIGH: tl.constexpr = about(FORMAT, "high")
    if LOW == 8:
        return decode(low.to(tl.int32), FORMAT)
    else:
        j = tl.arange(0, 16)[None, None, :]
        code = (low.to(tl.int32) >> (LOW * (j // (4 * LOW)) + 4 * HALF)) & ((1 << LOW) - 1)
        if HIGH > 0:
            bits = high.to(tl.int32)
            if HIGH == 1:
                bits = bits >> (8 * (j % 4))
            code |= ((bits >> (HIGH * (j // (4 * HIGH)) + 4 * HALF)) & ((1 << HIGH) - 1)) << LOW
        w = decode(code, FORMAT)
        if about(FORMAT, "minimums"):
            w += 128.0
        return w


@triton.jit
def unread(words):
    """Zeros that follow from int32 words, for an operand that is not read: Triton fetches ahead what operands of a
    product follow from, and nothing else. It does not see that they are zeros; LLVM does, and takes all of it out."""
    return (words.to(tl.uint32, bitcast=True) >> 16) >> 16


@triton.jit
def values(low, high, words, FORMAT: tl.constexpr):
    """Values of blocks, bf16: of 8 bits [S, N, 32]; else of both halves [S, N, 16], and with minimums as many ones.

    low, high: bytes of the planes, [S, N, 16] or [S, N, 32]; of a plane of one bit the word of a block, int32. words,
    int32 [S, N, 1], are not read: see `unread`.
    """
    LOW: tl.constexpr = about(FORMAT, "low")
    HIGH: tl.constexpr = about(FORMAT, "high")
    if PLAIN:
        if LOW == 8:
            return plain(low, high, 0, FORMAT)
        elif about(FORMAT, "minimums"):
            return plain(low, high, 0, FORMAT), plain(low, high, 1, FORMAT), low.to(tl.float32) * 0.0 + 1.0
        else:
            return plain(low, high, 0, FORMAT), plain(low, high, 1, FORMAT)
    elif LOW == 8:
        given = [low, unread(words)]
        return tl.inline_asm_elementwise(assembler(FORMAT), operands(FORMAT), given, tl.bfloat16, True, 4)
    else:
        j = tl.arange(0, 16)[None, None, :]
        if HIGH > 0 and LOW < 4:
            given = [low, LOW * (j // (4 * LOW)), high, HIGH * (j // (4 * HIGH)), unread(words)]
        elif HIGH > 0:
            given = [low, high, HIGH * (j // (4 * HIGH)), unread(words)]
        elif LOW < 4:
            given = [low, LOW * (j // (4 * LOW)), unread(words)]
        else:
            given = [low, unread(words)]
        return tl.inline_asm_elementwise(assembler(FORMAT), operands(FORMAT), given, outputs(FORMAT), True, 4)
