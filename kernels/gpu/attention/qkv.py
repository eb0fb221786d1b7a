"""Queries, keys and values made ready for attention in one launch: norm of heads, clip, rotation, cache writes.

A decode step is short of nothing but launches here: each costs more than what it does. Norms over all heads as one row
(OLMoE) take two launches before, since a program has only some of the heads. The pages are [pages, groups, page size,
d], so a head's row of d values is one run of bytes.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ...blocks.cache_rows import Rows
from .. import launch
from ..kernel import kernel
from ..norms import norm_rows_
from .asked import check_caches
from .cache_rows import store_row, stored

HEADS, WIDE_HEADS = 4, 2  # of a program; heads of more than 256 values are wide


@triton.jit
def clamp(x, limit, CLIP: tl.constexpr):
    """x within +- limit, NaN left as it is; x itself without CLIP."""
    if CLIP:
        return tl.where(x > limit, limit, tl.where(x < -limit, -limit, x))
    return x


@triton.jit
def normed(a, b, c, a_ok, b_ok, c_ok, these, weight, pair, rest, pairs, width, eps):
    """The pieces of a row, those of `these` heads normed over `width` values."""
    squares = tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1) + tl.sum(c * c, axis=1)
    scale = tl.where(these, tl.rsqrt(squares / width + eps)[:, None], 1.0)
    a *= scale * tl.load(weight + pair, mask=a_ok & these, other=1.0)
    b *= scale * tl.load(weight + pairs + pair, mask=b_ok & these, other=1.0)
    c *= scale * tl.load(weight + 2 * pairs + rest, mask=c_ok & these, other=1.0)
    return a, b, c


@triton.jit
def keep(row, a, b, c, a_ok, b_ok, c_ok, these, pair, rest, pairs):
    """Writes the pieces of `these` heads to a row, of the cache or where they came from."""
    kind = row.dtype.element_ty
    tl.store(row + pair, a.to(kind), mask=a_ok & these)
    tl.store(row + pairs + pair, b.to(kind), mask=b_ok & these)
    tl.store(row + 2 * pairs + rest, c.to(kind), mask=c_ok & these)


@triton.jit
def keep_q8(x, codes_ptr, scales_ptr, plane, at, these, width, PAGE: tl.constexpr, SIZE: tl.constexpr):
    """Writes what x holds of `these` heads to rows of a q8_0 cache."""
    tl.debug_barrier()  # a scale is of 32 values, which several threads have put back into x
    store_row(x, codes_ptr, scales_ptr, plane, at, these, width, PAGE, SIZE)


@triton.jit
def keep_shared(
    x, cache_ptr, scales_ptr, plane, at, a, b, c, a_ok, b_ok, c_ok, keys, weight, pair, rest, pairs, size, eps, limit,
    v_scale, V_NORM: tl.constexpr, CLIP: tl.constexpr, PAGE: tl.constexpr, Q8_SIZE: tl.constexpr,
):  # fmt: skip
    """Writes keys as they come as values of the cache; of q8_0 by way of x."""
    if V_NORM:
        a, b, c = normed(a, b, c, a_ok, b_ok, c_ok, keys, weight, pair, rest, pairs, size, eps)
    a, b, c = clamp(a, limit, CLIP) * v_scale, clamp(b, limit, CLIP) * v_scale, clamp(c, limit, CLIP) * v_scale
    if Q8_SIZE > 0:
        keep(x, a, b, c, a_ok, b_ok, c_ok, keys, pair, rest, pairs)
        keep_q8(x, cache_ptr, scales_ptr, plane, at, keys, size, PAGE, Q8_SIZE)
        tl.debug_barrier()  # before the keys themselves come there
    else:
        keep(cache_ptr + (plane * PAGE + at) * size, a, b, c, a_ok, b_ok, c_ok, keys, pair, rest, pairs)


@triton.jit
def rotated(a, b, cos_ptr, sin_ptr, position, pair, pairs, moved):
    """The first of each pair and the second, of rows that are moved."""
    angle = position.to(tl.int64) * pairs + pair
    cos = tl.where(moved, tl.load(cos_ptr + angle, mask=pair < pairs, other=0.0), 1.0)
    sin = tl.where(moved, tl.load(sin_ptr + angle, mask=pair < pairs, other=0.0), 0.0)
    return a * cos - b * sin, b * cos + a * sin


@kernel()
def _place_qkv(
    x_ptr, q_weight_ptr, k_weight_ptr, v_weight_ptr, cos_ptr, sin_ptr, positions_ptr, k_cache_ptr, k_scales_ptr,
    v_cache_ptr, v_scales_ptr, slots_ptr, x_stride, queries, groups, size, v_size, pairs, eps, limit, v_scale,
    NORM: tl.constexpr, V_NORM: tl.constexpr, SHARED: tl.constexpr, NARROW: tl.constexpr, CLIP: tl.constexpr,
    PAGE: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, Q8_SIZE: tl.constexpr,
):  # fmt: skip
    """A row is three pieces: the first of each pair, the second, and what is not rotated (REST values, or none).
    NARROW: values have another width than keys; SHARED: keys as they come serve as values; Q8_SIZE: 0 for a cache of
    floats, else so many values hold a head."""
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    pair, rest = tl.arange(0, PAIRS)[None, :], tl.arange(0, REST)[None, :]
    moved = head < queries + groups  # queries and keys
    values = (moved == 0) & (head < queries + 2 * groups)
    if SHARED:
        values = values & (head < 0)
    x, width = x_ptr + token * x_stride + head * size, tl.where(moved, size, v_size)
    if NARROW:
        x += tl.where(moved, 0, (head - queries - groups) * (v_size - size))
    there = moved | values
    a_ok, b_ok = there & (pair < pairs) & (pair < width), there & (pair < pairs) & (pairs + pair < width)
    c_ok = there & (rest < width - 2 * pairs)
    a = tl.load(x + pair, mask=a_ok, other=0.0)
    b = tl.load(x + pairs + pair, mask=b_ok, other=0.0)
    c = tl.load(x + 2 * pairs + rest, mask=c_ok, other=0.0)
    tl.debug_barrier()  # where a tile is small, several warps read the same values: before any is overwritten
    slot, keys = tl.load(slots_ptr + token), moved & (head >= queries)
    plane, at = slot // PAGE * groups + tl.where(moved, head - queries, head - queries - groups), slot % PAGE
    if SHARED:
        keep_shared(
            x, v_cache_ptr, v_scales_ptr, plane, at, a, b, c, a_ok, b_ok, c_ok, keys, v_weight_ptr, pair, rest, pairs,
            size, eps, limit, v_scale, V_NORM, CLIP, PAGE, Q8_SIZE,
        )  # fmt: skip
    elif V_NORM:
        a, b, c = normed(a, b, c, a_ok, b_ok, c_ok, values, v_weight_ptr, pair, rest, pairs, v_size, eps)
    if NORM:
        weight = tl.where(head < queries, q_weight_ptr, k_weight_ptr)
        a, b, c = normed(a, b, c, a_ok, b_ok, c_ok, moved, weight, pair, rest, pairs, size, eps)
    factor = tl.where(moved, 1.0, v_scale)
    a, b, c = clamp(a, limit, CLIP) * factor, clamp(b, limit, CLIP) * factor, clamp(c, limit, CLIP) * factor
    a, b = rotated(a, b, cos_ptr, sin_ptr, tl.load(positions_ptr + token), pair, pairs, moved)
    keep(x, a, b, c, a_ok, b_ok, c_ok, there, pair, rest, pairs)
    if Q8_SIZE > 0:
        codes, scales = tl.where(moved, k_cache_ptr, v_cache_ptr), tl.where(moved, k_scales_ptr, v_scales_ptr)
        keep_q8(x, codes, scales, plane, at, keys | values, width, PAGE, Q8_SIZE)
    else:
        place = plane * PAGE + at
        keep(k_cache_ptr + place * size, a, b, c, a_ok, b_ok, c_ok, keys, pair, rest, pairs)
        if not SHARED:
            keep(v_cache_ptr + place * v_size, a, b, c, a_ok, b_ok, c_ok, values, pair, rest, pairs)


def place_qkv_(
    qkv_TR: Tensor,
    k_PGBd: Rows,
    v_PGBv: Rows,
    slots_T: Tensor,
    cos_Pr: Tensor,
    sin_Pr: Tensor,
    positions_T: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    clip: float | None,
    v_norm: Tensor | None = None,
    shared: bool = False,
    v_scale: float = 1.0,
) -> None:
    (T, R), (P, r), (_P, G, page, d), v = qkv_TR.shape, cos_Pr.shape, k_PGBd.shape, v_PGBv.shape[3]
    check_caches(k_PGBd, v_PGBv)
    N = (R - (0 if shared else G * v)) // d - G
    assert 2 * r <= d, f"{r} pairs in {d} values"
    assert N > 0, f"{R} values with {G} heads of keys and of values"
    assert (N + G) * d + (0 if shared else G * v) == R, f"{R} values in heads of {d} and {v}"
    assert not shared or v == d, f"keys of {d} that serve as values of {v}"
    launch.check(qkv_TR, launch.F32, T, R)
    for table in (cos_Pr, sin_Pr):
        launch.check(table, launch.F32, P, r)
    launch.check(positions_T, launch.I32, T)
    launch.check(slots_T, launch.I64, T)
    norms = norms_of_heads(qkv_TR[:, : (N + G) * d].unflatten(1, (N + G, d)), N, q_norm, k_norm, eps, shared)
    ready = norms or (cos_Pr, cos_Pr)  # without a norm they are not read
    own = cos_Pr if v_norm is None else launch.check(v_norm, launch.F32, v)
    heads = HEADS if d <= 256 else WIDE_HEADS
    _place_qkv[(T, launch.cdiv(N + (G if shared else 2 * G), heads))](
        qkv_TR, *ready, own, cos_Pr, sin_Pr, positions_T, *stored(k_PGBd), *stored(v_PGBv), slots_T, R,
        N, G, d, v, r, eps, clip or 0.0, float(v_scale), NORM=bool(norms), V_NORM=v_norm is not None, SHARED=shared,
        NARROW=v != d, CLIP=clip is not None, PAGE=page, HEADS=heads,
        PAIRS=launch.pow2(r), REST=launch.pow2(max(1, d - 2 * r, v - 2 * r)),
        Q8_SIZE=0 if isinstance(k_PGBd, Tensor) else launch.pow2(max(d, v), 32),
    )  # fmt: skip


def norms_of_heads(
    qk_THd: Tensor, N: int, q_norm: Tensor | None, k_norm: Tensor | None, eps: float, shared: bool
) -> tuple[Tensor, Tensor] | None:
    """The norms of each head. Those of all heads as one row are computed here; None: these, or none."""
    assert (q_norm is None) == (k_norm is None), "a norm for queries or keys alone"
    if q_norm is None or k_norm is None:
        return None
    d = qk_THd.shape[2]
    if len(q_norm) == len(k_norm) == d:
        return launch.check(q_norm, launch.F32, d), launch.check(k_norm, launch.F32, d)
    assert not shared, "keys that are normed as a row before they serve as values"
    norm_rows_(qk_THd[:, :N], q_norm, eps)
    norm_rows_(qk_THd[:, N:], k_norm, eps)
    return None
