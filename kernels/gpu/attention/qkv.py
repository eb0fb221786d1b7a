"""Queries, keys and values made ready for attention in one launch: norm of heads, clip, rotation, cache writes.

A decode step is short of nothing but launches here: each costs more than what it does. Norms over all heads as one row
(OLMoE) take two launches before, since a program has only some of the heads. The pages are [pages, groups, page size,
d], so a head's row of d values is one run of bytes.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .. import launch
from ..kernel import kernel
from ..norms import norm_rows_

HEADS = 4  # of a program


@triton.jit
def clamp(x, limit, CLIP: tl.constexpr):
    """x within +- limit, NaN left as it is; x itself without CLIP."""
    if CLIP:
        return tl.where(x > limit, limit, tl.where(x < -limit, -limit, x))
    return x


@kernel()
def _place_qkv(
    x_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, positions_ptr, k_cache_ptr, v_cache_ptr, slots_ptr, x_stride,
    queries, groups, size, pairs, eps, limit,
    NORM: tl.constexpr, CLIP: tl.constexpr, PAGE: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr,
    REST: tl.constexpr,
):  # fmt: skip
    """A row is three pieces: the first of each pair, the second, and what is not rotated (REST values, or none)."""
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    pair, rest = tl.arange(0, PAIRS)[None, :], tl.arange(0, REST)[None, :]
    there = head < queries + 2 * groups
    moved = head < queries + groups  # queries and keys
    ok = there & (pair < pairs)
    rest_ok = there & (rest < size - 2 * pairs)
    x = x_ptr + token * x_stride + head * size
    a = tl.load(x + pair, mask=ok, other=0.0)
    b = tl.load(x + pairs + pair, mask=ok, other=0.0)
    c = tl.load(x + 2 * pairs + rest, mask=rest_ok, other=0.0)
    tl.debug_barrier()  # where a tile is small, several warps read the same values: before any is overwritten
    if NORM:
        squares = tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1) + tl.sum(c * c, axis=1)
        scale = tl.where(moved, tl.rsqrt(squares / size + eps)[:, None], 1.0)
        weight = tl.where(head < queries, q_weight_ptr, k_weight_ptr)
        a *= scale * tl.load(weight + pair, mask=ok & moved, other=1.0)
        b *= scale * tl.load(weight + pairs + pair, mask=ok & moved, other=1.0)
        c *= scale * tl.load(weight + 2 * pairs + rest, mask=rest_ok & moved, other=1.0)
    a, b, c = clamp(a, limit, CLIP), clamp(b, limit, CLIP), clamp(c, limit, CLIP)
    angle = tl.load(positions_ptr + token).to(tl.int64) * pairs + pair
    cos = tl.where(moved, tl.load(cos_ptr + angle, mask=pair < pairs, other=0.0), 1.0)
    sin = tl.where(moved, tl.load(sin_ptr + angle, mask=pair < pairs, other=0.0), 0.0)
    a, b = a * cos - b * sin, b * cos + a * sin
    changed = moved
    if CLIP:
        changed = there  # values too
    tl.store(x + pair, a, mask=ok & changed)
    tl.store(x + pairs + pair, b, mask=ok & changed)
    if NORM or CLIP:
        tl.store(x + 2 * pairs + rest, c, mask=rest_ok & changed)
    slot = tl.load(slots_ptr + token)
    cached = head >= queries
    group = tl.where(moved, head - queries, head - queries - groups)
    into = tl.where(moved, k_cache_ptr, v_cache_ptr) + ((slot // PAGE * groups + group) * PAGE + slot % PAGE) * size
    kind = k_cache_ptr.dtype.element_ty
    tl.store(into + pair, a.to(kind), mask=ok & cached)
    tl.store(into + pairs + pair, b.to(kind), mask=ok & cached)
    tl.store(into + 2 * pairs + rest, c.to(kind), mask=rest_ok & cached)


def place_qkv_(
    qkv_THd: Tensor,
    k_PGBd: Tensor,
    v_PGBd: Tensor,
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
) -> None:
    assert v_norm is None, "values have no norm here"
    assert not shared, "keys do not serve as values here"
    (T, H, d), (P, r) = qkv_THd.shape, cos_Pr.shape
    G, page, size = launch.caches(k_PGBd, v_PGBd)
    N = H - 2 * G
    assert 2 * r <= d == size, f"{r} pairs in {d} values, cache of {size}"
    assert N > 0, f"{H} heads with {G} of keys and of values"
    for table in (cos_Pr, sin_Pr):
        launch.check(table, launch.F32, P, r)
    launch.check(positions_T, launch.I32, T)
    launch.check(slots_T, launch.I64, T)
    stride = launch.heads(qkv_THd)
    weights = [weight for weight in (q_norm, k_norm) if weight is not None]
    assert len(weights) != 1, "a norm for queries or keys alone"
    by_head = bool(weights) and all(len(weight) == d for weight in weights)
    for weight, heads_TNd in zip(weights, (qkv_THd[:, :N], qkv_THd[:, N : N + G]), strict=False):
        if by_head:
            launch.check(weight, launch.F32, d)
        else:
            norm_rows_(heads_TNd, weight, eps)
    norms = weights if by_head else (cos_Pr, cos_Pr)  # without a norm they are not read
    _place_qkv[(T, launch.cdiv(H, HEADS))](
        qkv_THd, *norms, cos_Pr, sin_Pr, positions_T, k_PGBd, v_PGBd, slots_T, stride,
        N, G, d, r, eps, clip or 0.0, NORM=by_head, CLIP=clip is not None, PAGE=page, HEADS=HEADS,
        PAIRS=launch.pow2(r), REST=launch.pow2(max(1, d - 2 * r)),
    )  # fmt: skip
