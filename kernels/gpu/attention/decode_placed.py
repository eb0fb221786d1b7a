"""Decode attention that begins where the projection ends: programs as in `decode.py`, in one launch with what makes
heads ready and with the sum of the parts.

Every program makes its queries ready itself, and that with the end of the context also the new key and value: it goes
on with what it has in registers, others read them in later passes. Of the programs of a head and a sequence the one
that ends last joins the parts.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .. import launch
from ..cores.arrivals import counters, is_last
from ..kernel import kernel
from .asked import Asked
from .decode import KEYS
from .merge import JOINED, LEAST, MOST_PARTS, Parts, joined, part_length, parts_of, seen_of
from .placed import put, ready
from .qkv import clamp
from .softmax import attend, with_sink


class Place(NamedTuple):
    """How the heads of a projection are made ready, as in `place_qkv_`. norms: of a head of queries and of keys."""

    slots_T: Tensor
    cos_Pr: Tensor
    sin_Pr: Tensor
    positions_T: Tensor
    norms: tuple[Tensor, Tensor] | None
    eps: float
    clip: float | None
    v_scale: float


@triton.jit
def place_new(
    q, x_row, weight_ptr, cos_ptr, sin_ptr, position, slot, k_ptr, k_scales_ptr, v_ptr, v_scales_ptr, group, queries,
    groups, size, v_size, pairs, eps, limit, v_scale, NORM: tl.constexpr, CLIP: tl.constexpr, PAGE: tl.constexpr,
    SIZE: tl.constexpr, V_SIZE: tl.constexpr, SHARED: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Puts a group's new key and value into the cache: the scores of queries with it [n], and the value [1, V_SIZE]."""
    plane, row, one = slot // PAGE * groups + group, slot % PAGE, tl.zeros([1, 1], tl.int32)
    k_row = x_row + (queries + group) * size + one
    k = ready(k_row, one == 0, weight_ptr, cos_ptr, sin_ptr, position, size, pairs, eps, limit, NORM, CLIP, SIZE)
    k = put(k, k_ptr, k_scales_ptr, plane, row, size, PAGE, SIZE, SHARED, PRODUCT)
    dims = tl.arange(0, V_SIZE)[None, :]
    v = tl.load(x_row + (queries + groups) * size + group * v_size + dims, mask=dims < v_size, other=0.0)
    v = put(clamp(v, limit, CLIP) * v_scale, v_ptr, v_scales_ptr, plane, row, v_size, PAGE, V_SIZE, SHARED, PRODUCT)
    return tl.sum(q * k, axis=1), v


@triton.jit
def write(
    out_ptr, sinks_ptr, first_row, first_head, row, best, total, acc, size,
    GROUP: tl.constexpr, SIZE: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """What the heads of a group, number `row` [n] of it, have come to."""
    ok, dims = row < GROUP, tl.arange(0, SIZE)[None, :]
    if SINKS:
        total, kept = with_sink(best, total, tl.load(sinks_ptr + first_head + row, mask=ok, other=0.0))
        acc *= kept[:, None]
    out = acc / tl.where(ok, total, 1.0)[:, None]
    tl.store(out_ptr + (first_row + row)[:, None] * size + dims, out, mask=ok[:, None] & (dims < size))


@triton.jit
def leave(acc_ptr, best_ptr, total_ptr, at, ok, best, total, acc, size, SIZE: tl.constexpr):
    """A part of rows, for who joins them: at places `at` [n]."""
    dims = tl.arange(0, SIZE)[None, :]
    tl.store(best_ptr + at, best, mask=ok)
    tl.store(total_ptr + at, total, mask=ok)
    tl.store(acc_ptr + at[:, None] * size + dims, acc, mask=ok[:, None] & (dims < size))


@triton.jit
def begun(
    x_row, head, ok, context, last, sequence, group, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, positions_ptr,
    slots_ptr, k_ptr, k_scales_ptr, v_ptr, v_scales_ptr, groups, size, v_size, scale, pairs, eps, limit, v_scale,
    GROUP: tl.constexpr, PAGE: tl.constexpr, HEADS: tl.constexpr, SIZE: tl.constexpr, V_SIZE: tl.constexpr,
    SHARED: tl.constexpr, PRODUCT: tl.constexpr, NORM: tl.constexpr, CLIP: tl.constexpr,
):  # fmt: skip
    """Queries, the state before the first key of the cache, and up to where these are to be seen: with the new key in
    it, of the part that it is in."""
    position = tl.load(positions_ptr + sequence)
    q = ready(
        x_row + head[:, None] * size, ok[:, None], q_weight_ptr, cos_ptr, sin_ptr, position, size, pairs, eps, limit,
        NORM, CLIP, SIZE,
    ) * scale  # fmt: skip
    best = tl.full([HEADS], float("-inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    acc = tl.zeros([HEADS, V_SIZE], tl.float32)
    end = last
    if last == context:
        best, v = place_new(
            q, x_row, k_weight_ptr, cos_ptr, sin_ptr, position, tl.load(slots_ptr + sequence), k_ptr, k_scales_ptr,
            v_ptr, v_scales_ptr, group, groups * GROUP, groups, size, v_size, pairs, eps, limit, v_scale, NORM,
            CLIP, PAGE, SIZE, V_SIZE, SHARED, PRODUCT,
        )  # fmt: skip
        total, acc, end = total + 1.0, acc + v, context - 1
    return q, best, total, acc, end


@triton.jit
def finish(
    acc_ptr, best_ptr, total_ptr, arrived_ptr, out_ptr, sinks_ptr, best, total, acc, first_head, first_row, count,
    v_size, GROUP: tl.constexpr, HEADS: tl.constexpr, V_SIZE: tl.constexpr, SINKS: tl.constexpr,
    FEW_HEADS: tl.constexpr, PARTS: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """Writes what the heads of a group have come to, or a part of it, and then, if it is the last of `count`, all."""
    row = tl.arange(0, HEADS)
    at = ((first_row + row) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
    if count == 1:
        write(out_ptr, sinks_ptr, first_row, first_head, row, best, total, acc, v_size, GROUP, V_SIZE, SINKS)
    else:
        leave(acc_ptr, best_ptr, total_ptr, at, row < GROUP, best, total, acc, v_size, V_SIZE)
        if is_last(arrived_ptr + tl.program_id(0), count):
            few = tl.arange(0, FEW_HEADS)
            most, whole, sums = joined(
                acc_ptr, best_ptr, total_ptr, first_row + few, few < GROUP, count, tl.num_programs(1), v_size,
                FEW_HEADS, V_SIZE, PARTS, MOST,
            )  # fmt: skip
            write(out_ptr, sinks_ptr, first_row, first_head, few, most, whole, sums, v_size, GROUP, V_SIZE, SINKS)


@kernel("table_stride")
def _decode_placed(
    q_ptr, k_ptr, k_scales_ptr, v_ptr, v_scales_ptr, tables_ptr, contexts_ptr, sinks_ptr, out_ptr, acc_ptr, best_ptr,
    total_ptr, arrived_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr, q_stride,
    table_stride, groups, size, scale, pairs, eps, limit, v_scale, GROUP: tl.constexpr, PAGE: tl.constexpr,
    HEADS: tl.constexpr, SIZE: tl.constexpr, VALUE: tl.constexpr, V_SIZE: tl.constexpr, WINDOW: tl.constexpr,
    CHUNK: tl.constexpr, KEYS: tl.constexpr, LEAST: tl.constexpr, SHARED: tl.constexpr, PRODUCT: tl.constexpr,
    NORM: tl.constexpr, CLIP: tl.constexpr, SINKS: tl.constexpr,
    FEW_HEADS: tl.constexpr, PARTS: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """FEW_HEADS, PARTS, MOST: as in `joined`."""
    sequence, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    context = tl.load(contexts_ptr + sequence)
    seen = seen_of(context, WINDOW, CHUNK)
    length = part_length(seen, tl.num_programs(1), LEAST, KEYS)
    first = context - seen + tl.program_id(1) * length
    last = tl.minimum(first + length, context)
    head, ok = group * GROUP + tl.arange(0, HEADS), tl.arange(0, HEADS) < GROUP
    v_size = size
    if VALUE > 0:
        v_size = VALUE
    if first < last:
        q, best, total, acc, end = begun(
            q_ptr + sequence.to(tl.int64) * q_stride, head, ok, context, last, sequence, group, q_weight_ptr,
            k_weight_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr, k_ptr, k_scales_ptr, v_ptr, v_scales_ptr, groups,
            size, v_size, scale, pairs, eps, limit, v_scale, GROUP, PAGE, HEADS, SIZE, V_SIZE, SHARED, PRODUCT, NORM,
            CLIP,
        )  # fmt: skip
        table = tables_ptr + sequence * table_stride
        for start in range(first, end, KEYS):
            positions = start + tl.arange(0, KEYS)
            best, total, acc = attend(
                q, best, total, acc, k_ptr, k_scales_ptr, v_ptr, v_scales_ptr, table, positions,
                (positions < end)[None, :], positions < end, group, groups, size, v_size, PAGE, PRODUCT, True, False,
                SIZE, V_SIZE, SHARED,
            )  # fmt: skip
        finish(
            acc_ptr, best_ptr, total_ptr, arrived_ptr, out_ptr, sinks_ptr, best, total, acc, group * GROUP,
            (sequence * groups + group) * GROUP, tl.cdiv(seen, length), v_size, GROUP, HEADS, V_SIZE, SINKS,
            FEW_HEADS, PARTS, MOST,
        )  # fmt: skip


def decode_placed(it: Asked, place: Place) -> None:
    """Writes the attention of one new token of each sequence, from a projection's heads."""
    parts = parts_of(it.S, it.G, it.most_seen, it.q.device)
    found, heads, most = Parts(it.q, it.v, parts), launch.pow2(it.N // it.G), 8 if parts <= 8 else MOST_PARTS
    _decode_placed[(it.S * it.G, parts)](
        it.q, *it.k, *it.v_rows, it.tables, it.contexts, it.sinks_or_any, it.out, *found.tensors,
        counters(it.q.device, "attention", it.S * it.G), *(place.norms or (it.q, it.q)), place.cos_Pr, place.sin_Pr,
        place.positions_T, place.slots_T, it.q_stride, it.M, it.G, it.d, it.scale, place.cos_Pr.shape[1], place.eps,
        place.clip or 0.0, float(place.v_scale), GROUP=it.N // it.G, PAGE=it.page, HEADS=max(16, heads), **it.widths,
        WINDOW=it.window, CHUNK=it.chunk, KEYS=KEYS[it.kind], LEAST=LEAST, SHARED=it.shared, PRODUCT=it.kind,
        NORM=place.norms is not None, CLIP=place.clip is not None, SINKS=it.sinks is not None, FEW_HEADS=heads,
        PARTS=max(1, min(most, JOINED // heads // launch.pow2(it.v, 16))), MOST=most, num_warps=4, num_stages=it.stages,
    )  # fmt: skip
