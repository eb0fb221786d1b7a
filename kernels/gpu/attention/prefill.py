"""Attention of many new tokens over the paged cache: tiles of QUERIES tokens of one head, over the keys they may see.

Sequences differ in length, and the host does not look at their lengths: the grid has a program for every block that T
tokens of S sequences could need, and each finds its sequence from the starts. Blocks that do not exist end at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .. import launch
from ..kernel import kernel
from .asked import Asked
from .softmax import attend, with_sink


@triton.jit
def first_seen(place, WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """The first position that a query at `place` sees: of its WINDOW and of its CHUNK, 0: there are none."""
    first = place * 0
    if WINDOW > 0:
        first = tl.maximum(place - WINDOW + 1, 0)
    if CHUNK > 0:
        first = tl.maximum(first, place // CHUNK * CHUNK)
    return first


@kernel("table_stride", "sequences")
def _prefill(
    q_ptr, k_ptr, k_scales_ptr, v_ptr, v_scales_ptr, tables_ptr, starts_ptr, contexts_ptr, sinks_ptr, out_ptr, q_stride,
    table_stride, sequences, groups, size, scale,
    N_HEADS: tl.constexpr, GROUP: tl.constexpr, PAGE: tl.constexpr, QUERIES: tl.constexpr, SIZE: tl.constexpr,
    VALUE: tl.constexpr, V_SIZE: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, SINKS: tl.constexpr,
    KEYS: tl.constexpr, SEQUENCES: tl.constexpr, SHARED: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    every = tl.arange(0, SEQUENCES)
    starts = tl.load(starts_ptr + every, mask=every < sequences, other=0)
    ends = tl.load(starts_ptr + 1 + every, mask=every < sequences, other=0)
    blocks = tl.cumsum(tl.cdiv(ends - starts, QUERIES), axis=0)  # up to and with each sequence
    sequence = tl.sum((blocks <= tl.program_id(0)).to(tl.int32), axis=0)
    if sequence < sequences:
        before = tl.max(tl.where(every < sequence, blocks, 0), axis=0)
        start, end = tl.load(starts_ptr + sequence), tl.load(starts_ptr + sequence + 1)
        context = tl.load(contexts_ptr + sequence)
        token = start + (tl.program_id(0) - before) * QUERIES + tl.arange(0, QUERIES)
        place = context - end + token  # of each query in its sequence
        dims, v_dims = tl.arange(0, SIZE), tl.arange(0, V_SIZE)
        v_size = size
        if VALUE > 0:
            v_size = VALUE
        ok = (token < end)[:, None] & (dims < size)[None, :]
        at = token.to(tl.int64)[:, None]
        q = tl.load(q_ptr + at * q_stride + head * size + dims[None, :], mask=ok, other=0.0) * scale
        best = tl.full([QUERIES], float("-inf"), tl.float32)
        total = tl.zeros([QUERIES], tl.float32)
        acc = tl.zeros([QUERIES, V_SIZE], tl.float32)
        table = tables_ptr + sequence * table_stride
        last = tl.minimum(context, tl.max(place, axis=0) + 1)
        begin = first_seen(tl.min(place, axis=0), WINDOW, CHUNK) // KEYS * KEYS
        for first in range(begin, last, KEYS):
            positions = first + tl.arange(0, KEYS)
            seen = positions[None, :] <= place[:, None]
            if WINDOW > 0 or CHUNK > 0:
                seen = seen & (positions[None, :] >= first_seen(place, WINDOW, CHUNK)[:, None])
            best, total, acc = attend(
                q, best, total, acc, k_ptr, k_scales_ptr, v_ptr, v_scales_ptr, table, positions, seen, positions < last,
                head // GROUP, groups, size, v_size, PAGE, PRODUCT, False, WINDOW > 0 or CHUNK > 0, SIZE, V_SIZE,
                SHARED,
            )  # fmt: skip
        if SINKS:
            total, kept = with_sink(best, total, tl.load(sinks_ptr + head))
            acc *= kept[:, None]
        v_ok = (token < end)[:, None] & (v_dims < v_size)[None, :]
        tl.store(out_ptr + (at * N_HEADS + head) * v_size + v_dims[None, :], acc / total[:, None], mask=v_ok)


def prefill(it: Asked) -> None:
    """Writes the attention of T new tokens."""
    queries, keys, warps = (128, 64, 8) if it.kind == "bf16" else (16, 32, 4)
    if it.d > 128:  # 64 keys and values would be more than GPUs with 99 KB have room for
        keys = 32
    if it.is_wide:
        queries, keys, warps = min(queries, 32), 16, 8 if it.kind == "bf16" else 4
    _prefill[(it.T // queries + it.S, it.N)](
        it.q, *it.k, *it.v_rows, it.tables, it.starts, it.contexts, it.sinks_or_any, it.out, it.q_stride, it.M, it.S,
        it.G, it.d, it.scale,
        N_HEADS=it.N, GROUP=it.N // it.G, PAGE=it.page, QUERIES=queries, **it.widths, WINDOW=it.window,
        CHUNK=it.chunk, SINKS=it.sinks is not None, KEYS=keys, SEQUENCES=launch.places(it.S), SHARED=it.shared,
        PRODUCT=it.kind, num_warps=warps, num_stages=it.stages,
    )  # fmt: skip
