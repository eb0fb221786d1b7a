"""Stored elements -> float32 weights, inside a kernel; embedding and dequantising, which are nothing else.

A row is read in granules of 16 bytes, so that a thread's loads are 16 bytes wide. `plane` p of a granule are the
weights that lie p-th in every stored element:

    q4_0    byte j of block b:  plane 0 is weight 32 b + j (low half), plane 1 is weight 32 b + 16 + j (high half)
    others  element c:          plane 0 is weight c

A quant becomes a float without a conversion, whose units are few: its bits are or-ed into the mantissa of 2^23, which
gives 2^23 + q exactly, and the offset is subtracted. A quant that lies k bits higher counts 2^k q; it is left there,
and multiplied by 2^-k in the instruction that subtracts. Every value that enters arithmetic is float32 first.

`decode` takes elements one by one. `decode_word` takes four bytes at a time, for kernels that are bound by how fast
instructions are issued: q4_0 is then one shift and eight and-ors for eight weights.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...packed import Matrix
from .. import launch
from ..kernel import kernel


@triton.jit
def scaled(bits, AT: tl.constexpr, ZERO: tl.constexpr):
    """q - ZERO from the bits of the float 2^23 + 2^AT q; exact in every step."""
    value = bits.to(tl.float32, bitcast=True)
    if AT == 0:
        return value - (8388608.0 + ZERO)
    factor = tl.full(value.shape, 1.0 / (1 << AT), tl.float32)
    return tl.fma(value, factor, tl.full(value.shape, -(8388608.0 / (1 << AT) + ZERO), tl.float32))


@triton.jit
def decode_word(word, BYTE: tl.constexpr, PLANE: tl.constexpr, FORMAT: tl.constexpr):
    """One plane of one byte of int32 words of a block format as float32, before their scale. A mantissa has room for
    the lower 20 bits in place; what lies higher is shifted down."""
    BIT: tl.constexpr = 8 * BYTE + 4 * PLANE
    if FORMAT == "q4_0":
        DOWN: tl.constexpr = 20 if BIT > 16 else 0
        return scaled(((word >> DOWN) & (15 << (BIT - DOWN))) | 0x4B000000, BIT - DOWN, 8)
    else:
        LOWER: tl.constexpr = 16 if BIT > 8 else 0
        flipped = (word ^ -2139062144) >> LOWER  # the top bit of every byte: q + 128
        return scaled((flipped & (255 << (BIT - LOWER))) | 0x4B000000, BIT - LOWER, 128)


@triton.jit
def decode(raw, PLANE: tl.constexpr, FORMAT: tl.constexpr):
    """One plane of stored elements as float32, before their scale."""
    if FORMAT == "q4_0":
        if PLANE == 0:
            return ((raw.to(tl.int32) & 15) | 0x4B000000).to(tl.float32, bitcast=True) - 8388616.0
        return scaled((raw.to(tl.int32) & 240) | 0x4B000000, 4, 8)
    if FORMAT == "q8_0":
        return ((raw.to(tl.int32) ^ 128) | 0x4B000000).to(tl.float32, bitcast=True) - 8388736.0
    return raw.to(tl.float32)


@triton.jit
def column(e, PLANE: tl.constexpr, FORMAT: tl.constexpr):
    """The column of a row's stored element e in a plane."""
    if FORMAT == "q4_0":
        return e // 16 * 32 + e % 16 + 16 * PLANE
    return e


@triton.jit
def scale_of(granule, FORMAT: tl.constexpr):
    """Which scale of its row a granule of 16 bytes has: 32 weights share one."""
    if FORMAT == "q4_0":
        return granule
    return granule // 2


@kernel()
def _unpack_rows(
    ids_ptr, values_ptr, scales_ptr, out_ptr, elements, cols, stride, factor,
    IDS: tl.constexpr, FORMAT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    PLANES: tl.constexpr = 2 if FORMAT == "q4_0" else 1
    t = tl.program_id(0).to(tl.int64)
    row = t
    if IDS:
        row = tl.load(ids_ptr + t)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = e < elements
    raw = tl.load(values_ptr + row * stride + e, mask=ok, other=0)
    for plane in tl.static_range(PLANES):
        w = decode(raw, plane, FORMAT)
        if FORMAT == "q4_0" or FORMAT == "q8_0":
            scale = tl.load(scales_ptr + row * stride // 16 * 8 + scale_of(e // 16, FORMAT), mask=ok, other=0)
            w *= scale.to(tl.float32)
        tl.store(out_ptr + t * cols + column(e, plane, FORMAT), w * factor, mask=ok)


def _unpack(matrix: Matrix, ids_T: Tensor | None, rows: int, factor: float) -> Tensor:
    w, block = launch.packed(matrix), 1024
    out = torch.empty(rows, matrix.cols, dtype=launch.F32, device=matrix.data.device)
    ids = matrix.data if ids_T is None else ids_T
    _unpack_rows[(rows, launch.cdiv(w.elements, block))](
        ids, w.values, w.scales, out, w.elements, matrix.cols, w.stride, factor,
        IDS=ids_T is not None, FORMAT=matrix.format.name, BLOCK=block,
    )  # fmt: skip
    return out


def dequantize(matrix: Matrix) -> Tensor:
    return _unpack(matrix, None, matrix.rows, 1.0)


def embed(table: Matrix, ids_T: Tensor, scale: float = 1.0) -> Tensor:
    launch.check(ids_T, launch.I64, ids_T.shape[0])
    return _unpack(table, ids_T, ids_T.shape[0], scale)
