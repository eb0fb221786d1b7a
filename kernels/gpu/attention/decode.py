"""One new token of each sequence over the paged cache: a program has one key/value head of one sequence, with all its
query heads as the rows of one tile, and one part of what the token sees; so the cache is read once. `merge.py` joins
the parts."""

from __future__ import annotations

import triton.language as tl

from .. import launch
from ..kernel import kernel
from .asked import Asked
from .merge import LEAST, Parts, part_length, parts_of, seen_of
from .softmax import attend

KEYS = {"bf16": 64, "f32": 32}  # of one step
FEW = 16  # of wide heads


@kernel("table_stride")
def _decode(
    q_ptr, k_ptr, k_scales_ptr, v_ptr, v_scales_ptr, tables_ptr, contexts_ptr, acc_ptr, best_ptr, total_ptr, q_stride,
    table_stride, groups, size, scale, GROUP: tl.constexpr, PAGE: tl.constexpr, HEADS: tl.constexpr, SIZE: tl.constexpr,
    VALUE: tl.constexpr, V_SIZE: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, KEYS: tl.constexpr,
    LEAST: tl.constexpr, SHARED: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    sequence, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    part, parts = tl.program_id(1), tl.num_programs(1)
    context = tl.load(contexts_ptr + sequence)
    seen = seen_of(context, WINDOW, CHUNK)
    length = part_length(seen, parts, LEAST, KEYS)
    first = context - seen + part * length
    last = tl.minimum(first + length, context)
    row, dims, v_dims = tl.arange(0, HEADS), tl.arange(0, SIZE), tl.arange(0, V_SIZE)
    v_size = size
    if VALUE > 0:
        v_size = VALUE
    ok = (row < GROUP)[:, None] & (dims < size)[None, :]
    v_ok = (row < GROUP)[:, None] & (v_dims < v_size)[None, :]
    head = group * GROUP + row
    if first < last:
        q = tl.load(
            q_ptr + sequence.to(tl.int64) * q_stride + head[:, None] * size + dims[None, :], mask=ok, other=0.0
        ) * scale  # fmt: skip
        best = tl.full([HEADS], float("-inf"), tl.float32)
        total = tl.zeros([HEADS], tl.float32)
        acc = tl.zeros([HEADS, V_SIZE], tl.float32)
        table = tables_ptr + sequence * table_stride
        for start in range(first, last, KEYS):
            positions = start + tl.arange(0, KEYS)
            best, total, acc = attend(
                q, best, total, acc, k_ptr, k_scales_ptr, v_ptr, v_scales_ptr, table, positions,
                (positions < last)[None, :], positions < last, group, groups, size, v_size, PAGE, PRODUCT, True, False,
                SIZE, V_SIZE, SHARED,
            )  # fmt: skip
        out = ((sequence * groups * GROUP + head) * parts + part).to(tl.int64)
        tl.store(best_ptr + out, best, mask=row < GROUP)
        tl.store(total_ptr + out, total, mask=row < GROUP)
        tl.store(acc_ptr + out[:, None] * v_size + v_dims[None, :], acc, mask=v_ok)


def decode(it: Asked) -> None:
    """Writes the attention of one new token of each sequence."""
    parts = parts_of(it.S, it.G, it.most_seen, it.q.device)
    found, keys = Parts(it.q, it.v, parts), FEW if it.is_wide else KEYS[it.kind]
    _decode[(it.S * it.G, parts)](
        it.q, *it.k, *it.v_rows, it.tables, it.contexts, *found.tensors, it.q_stride, it.M, it.G, it.d, it.scale,
        GROUP=it.N // it.G, PAGE=it.page, HEADS=launch.pow2(it.N // it.G, 16), **it.widths, WINDOW=it.window,
        CHUNK=it.chunk, KEYS=keys, LEAST=LEAST, SHARED=it.shared, PRODUCT=it.kind, num_warps=4, num_stages=it.stages,
    )  # fmt: skip
    found.merge(it, keys)
