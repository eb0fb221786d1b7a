"""Rows of the cache as kernels read them, floats or q8_0, and how rows are made q8_0.

Of q8_0 a plane (a page of one head) has PAGE rows of codes, then their scales: `kernels/blocks/cache_rows.py` says how
both are chosen, and the bits here are the same. The size of a row, and so a plane, is a multiple of 32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...blocks import cache_rows
from ...blocks.cache_rows import Q8Rows, Rows
from .. import launch
from ..kernel import kernel


class Stored(NamedTuple):
    """Rows as kernels see them: numbers or codes, and scales; of floats the numbers again, which are not read."""

    codes: Tensor
    scales: Tensor


def stored(rows: Rows) -> Stored:
    return Stored(rows.codes, rows.scales) if isinstance(rows, Q8Rows) else Stored(rows, rows)


@triton.jit
def plane_bytes(size, PAGE: tl.constexpr):
    """Of PAGE rows of q8_0."""
    return PAGE * (size + size // 16)


@triton.jit
def load_rows(
    codes_ptr, scales_ptr, place, ok, first, end, size,
    PAGE: tl.constexpr, SIZE: tl.constexpr, SHARED: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """SIZE numbers from `first` on of the rows of `size` numbers at `place` [n], int64: [n, SIZE], 0 where a row is not
    `ok` and from `end` on. SHARED: 0 for floats, else how many numbers from `first` on have one scale; of q8_0 they
    come as products take them."""
    if SHARED > 0:
        return load_q8(codes_ptr, scales_ptr, place, ok, first, end, size, PAGE, SIZE, SHARED, PRODUCT)
    else:
        at = first + tl.arange(0, SIZE)
        mask = ok[:, None] & (at < end)[None, :]
        return tl.load(codes_ptr + (place * size)[:, None] + at[None, :], mask=mask, other=0.0)


@triton.jit
def load_q8(
    codes_ptr, scales_ptr, place, ok, first, end, size,
    PAGE: tl.constexpr, SIZE: tl.constexpr, SHARED: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """The same of q8_0."""
    at, inside = first + tl.arange(0, SIZE // SHARED) * SHARED, tl.arange(0, SHARED)
    plane, row = place // PAGE * plane_bytes(size, PAGE), place % PAGE
    here = ok[:, None] & (at < end)[None, :]
    halves = scales_ptr + (plane // 2 + row * (size // 32))[:, None] + (at // 32)[None, :]
    scale = tl.load(halves, mask=here, other=0.0).to(tl.float32)
    places = (plane + row * size)[:, None, None] + at[None, :, None] + inside[None, None, :]
    codes = tl.load(codes_ptr + places, mask=here[:, :, None], other=0).to(tl.float32)
    wide = tl.reshape(codes * scale[:, :, None], [place.shape[0], SIZE])
    if PRODUCT == "bf16":
        wide = wide.to(tl.bfloat16)
    return wide


@triton.jit
def quantise(x):
    """Runs of 32 numbers [n, runs, 32] as codes, int8, and scales, float16 [n, runs]."""
    is_finite = tl.max(tl.where(x - x == 0.0, 0, 1), axis=2) == 0
    peak = tl.max(tl.where(is_finite[:, :, None], tl.abs(x), 0.0), axis=2)
    wanted = tl.minimum(tl.div_rn(peak, 127.0), 65504.0)
    scale = tl.where(is_finite, wanted, float("nan")).to(tl.float16)
    is_scaled = is_finite & (scale.to(tl.float32) > 0.0)
    inverse = tl.where(is_scaled, tl.div_rn(1.0, tl.where(is_scaled, scale.to(tl.float32), 1.0)), 0.0)
    q = tl.where(is_scaled[:, :, None], x, 0.0) * inverse[:, :, None]
    q = tl.minimum(tl.maximum(q, -127.0), 127.0)
    return ((q + 12582912.0) - 12582912.0).to(tl.int8), scale  # 1.5 * 2^23: rounds to the even one of two


@triton.jit
def store_row(
    x_rows, codes_ptr, scales_ptr, plane, row, ok, size, PAGE: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    """Puts rows [n, 1] of `size` numbers ([n, 1] where they differ), of which SIZE hold all, at place `row` of planes
    [n, 1], as q8_0."""
    run, inside = tl.arange(0, SIZE // 32)[None, :], tl.arange(0, 32)[None, None, :]
    here = ok & (run < size // 32)
    at = (run * 32)[:, :, None] + inside
    codes, scale = quantise(tl.load(x_rows[:, :, None] + at, mask=here[:, :, None], other=0.0))
    first = plane * plane_bytes(size, PAGE)
    tl.store((codes_ptr + first + row * size)[:, :, None] + at, codes, mask=here[:, :, None])
    tl.store(scales_ptr + first // 2 + row * (size // 32) + run, scale, mask=here)


@kernel()
def _store_q8(
    x_ptr, codes_ptr, scales_ptr, slots_ptr, x_stride, groups, size,
    PAGE: tl.constexpr, SIZE: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """One token's rows."""
    token = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, GROUPS)[:, None]
    slot = tl.load(slots_ptr + token)
    x_rows = x_ptr + token * x_stride + group * size
    plane = slot // PAGE * groups + group
    store_row(x_rows, codes_ptr, scales_ptr, plane, slot % PAGE, group < groups, size, PAGE, SIZE)


def store_rows_(rows: Rows, slots_T: Tensor, values_TGd: Tensor) -> None:
    if isinstance(rows, Tensor):
        cache_rows.store_(rows, slots_T, values_TGd)
        return
    (T, G, d), (_P, groups, page, size) = values_TGd.shape, rows.shape
    assert (G, d) == (groups, size), f"{G} rows of {d} for {groups} of {size}"
    launch.check(slots_T, launch.I64, T)
    _store_q8[(T,)](
        values_TGd, *stored(rows), slots_T, launch.heads(values_TGd), G, d,
        PAGE=page, SIZE=launch.pow2(d, 32), GROUPS=launch.pow2(G), num_warps=1 if G * d <= 1024 else 4,
    )  # fmt: skip


def shared_scale(rows: Rows, *firsts: int) -> int:
    """SHARED of `load_rows` for runs that begin at these numbers."""
    if isinstance(rows, Tensor):
        return 0
    return 32 if all(first % 32 == 0 for first in firsts) else 1


def is_float(dtype: torch.dtype) -> bool:
    return dtype in (torch.float32, torch.bfloat16)
