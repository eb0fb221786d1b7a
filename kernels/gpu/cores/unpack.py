"""Rows of stored weights -> float32: embedding and dequantising. Each weight by itself, since rows are few, or it is
done once; the cores of products are `few.py` and `many.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...packed import Matrix
from .. import launch
from ..kernel import kernel
from .codes import decode
from .constants import about
from .places import planes
from .scales import scales

BLOCK = 1024  # columns of a program


@triton.jit
def plane(w_ptr, row, at, weight, ok, BITS: tl.constexpr):
    """The bits that a plane has of weights of a block; `at`: where the block begins in it, in units of 4 bytes."""
    byte = tl.load(w_ptr + row + at * 4 + weight % (4 * BITS), mask=ok, other=0).to(tl.int32)
    return (byte >> (weight // (4 * BITS) * BITS)) & ((1 << BITS) - 1)


@triton.jit
def unpacked(w_ptr, s_ptr, row, column, ok, cols, FORMAT: tl.constexpr, WHOLE: tl.constexpr):
    """Weights of a row of a block format: float32, the shape of `column`."""
    LOW: tl.constexpr = about(FORMAT, "low")
    HIGH: tl.constexpr = about(FORMAT, "high")
    block, weight, blocks = column // 32, column % 32, cols // 32
    at_low, at_high = planes(block, blocks, FORMAT)
    code = plane(w_ptr, row, at_low, weight, ok, LOW)
    if HIGH > 0:
        code |= plane(w_ptr, row, at_high, weight, ok, HIGH) << LOW
    factor, least = scales(s_ptr, row, block, blocks, weight // 16, block, ok, ok, FORMAT, WHOLE, False)
    w = decode(code, FORMAT) * factor
    if about(FORMAT, "minimums"):
        w += least
    return w


@kernel()
def _unpack_rows(
    ids_ptr, values_ptr, scales_ptr, out_ptr, cols, stride, factor,
    IDS: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    row = t
    if IDS:
        row = tl.load(ids_ptr + t)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = column < cols
    if about(FORMAT, "block"):
        w = unpacked(values_ptr, scales_ptr, row * stride, column, ok, cols, FORMAT, WHOLE)
    else:
        w = tl.load(values_ptr + row * stride + column, mask=ok, other=0).to(tl.float32)
    tl.store(out_ptr + t * cols + column, w * factor, mask=ok)


def _unpack(matrix: Matrix, ids_T: Tensor | None, rows: int, factor: float) -> Tensor:
    w = launch.packed(matrix)
    out = torch.empty(rows, matrix.cols, dtype=launch.F32, device=matrix.data.device)
    ids = matrix.data if ids_T is None else ids_T
    _unpack_rows[(rows, launch.cdiv(matrix.cols, BLOCK))](
        ids, w.values, w.scales, out, matrix.cols, w.stride, factor,
        IDS=ids_T is not None, WHOLE=w.whole, FORMAT=matrix.format.name, BLOCK=BLOCK,
        enable_fp_fusion=False,  # each operation rounded, as in the twin
    )  # fmt: skip
    return out


def dequantize(matrix: Matrix) -> Tensor:
    return _unpack(matrix, None, matrix.rows, 1.0)


def embed(table: Matrix, ids_T: Tensor, scale: float = 1.0) -> Tensor:
    launch.check(ids_T, launch.I64, ids_T.shape[0])
    return _unpack(table, ids_T, ids_T.shape[0], scale)
