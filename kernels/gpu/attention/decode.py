"""Causal grouped-query attention over the paged cache: which kernel, and decode.

Decode reads the cache once: a program has one key/value head of one sequence, with all its query heads as the rows of
one tile, and one part of the context; `_merge` joins the parts. The number of parts follows from the size of the page
table, so that the grid is fixed; how long a part is follows from the context, on the device. Programs without keys end
at once. A batch in which every sequence has one new token is decode; anything else goes to `prefill.py`.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import launch
from ..kernel import INTERPRETED, kernel
from .prefill import prefill
from .softmax import attend

KEYS = {"bf16": 64, "f32": 32}  # of one step
LEAST = 256  # keys that make a part worth a program
MOST_PARTS = 64


@triton.jit
def part_length(context, parts, LEAST: tl.constexpr, KEYS: tl.constexpr):
    """Keys of one part: whole steps, at least LEAST."""
    return tl.maximum(tl.cdiv(tl.cdiv(context, parts), KEYS) * KEYS, LEAST)


@kernel("table_stride")
def _decode(
    q_ptr, k_ptr, v_ptr, tables_ptr, contexts_ptr, acc_ptr, best_ptr, total_ptr, q_stride, table_stride, groups, size,
    scale, GROUP: tl.constexpr, PAGE: tl.constexpr, HEADS: tl.constexpr, SIZE: tl.constexpr, KEYS: tl.constexpr,
    LEAST: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    sequence, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    part, parts = tl.program_id(1), tl.num_programs(1)
    context = tl.load(contexts_ptr + sequence)
    length = part_length(context, parts, LEAST, KEYS)
    first = part * length
    last = tl.minimum(first + length, context)
    row, dims = tl.arange(0, HEADS), tl.arange(0, SIZE)
    ok = (row < GROUP)[:, None] & (dims < size)[None, :]
    head = group * GROUP + row
    if first < last:
        q = tl.load(
            q_ptr + sequence.to(tl.int64) * q_stride + head[:, None] * size + dims[None, :], mask=ok, other=0.0
        ) * scale  # fmt: skip
        best = tl.full([HEADS], float("-inf"), tl.float32)
        total = tl.zeros([HEADS], tl.float32)
        acc = tl.zeros([HEADS, SIZE], tl.float32)
        table = tables_ptr + sequence * table_stride
        for start in range(first, last, KEYS):
            positions = start + tl.arange(0, KEYS)
            best, total, acc = attend(
                q, best, total, acc, k_ptr, v_ptr, table, positions, (positions < last)[None, :], positions < last,
                group, groups, size, dims, PAGE, PRODUCT, True,
            )  # fmt: skip
        out = ((sequence * groups * GROUP + head) * parts + part).to(tl.int64)
        tl.store(best_ptr + out, best, mask=row < GROUP)
        tl.store(total_ptr + out, total, mask=row < GROUP)
        tl.store(acc_ptr + out[:, None] * size + dims[None, :], acc, mask=ok)


@kernel("parts")
def _merge(
    acc_ptr, best_ptr, total_ptr, contexts_ptr, out_ptr, n_heads, parts, size,
    PARTS: tl.constexpr, SIZE: tl.constexpr, KEYS: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    context = tl.load(contexts_ptr + row // n_heads)
    part, dims = tl.arange(0, PARTS), tl.arange(0, SIZE)
    ok = part < tl.cdiv(context, part_length(context, parts, LEAST, KEYS))
    best = tl.load(best_ptr + row * parts + part, mask=ok, other=float("-inf"))
    share = tl.exp2(best - tl.max(best, axis=0))
    total = tl.sum(share * tl.load(total_ptr + row * parts + part, mask=ok, other=0.0), axis=0)
    mask = ok[:, None] & (dims < size)[None, :]
    acc = tl.load(acc_ptr + (row * parts + part[:, None]) * size + dims[None, :], mask=mask, other=0.0)
    tl.store(out_ptr + row * size + dims, tl.sum(acc * share[:, None], axis=0) / total, mask=dims < size)


def parts_of(sequences: int, groups: int, keys: int, device: torch.device) -> int:
    """Parts of a context of at most `keys`: about two programs a multiprocessor, none with fewer than LEAST keys."""
    wanted = launch.cdiv(2 * launch.multiprocessors(device), sequences * groups)
    return max(1, min(wanted, launch.cdiv(keys, LEAST), MOST_PARTS))


def attention(
    q_TNd: Tensor,
    k_PGBd: Tensor,
    v_PGBd: Tensor,
    tables_SM: Tensor,
    starts_S1: Tensor,
    contexts_S: Tensor,
    scale: float,
    window: int | None = None,
    sinks_N: Tensor | None = None,
) -> Tensor:
    assert window is None, "a window on a GPU"
    assert sinks_N is None, "sinks on a GPU"
    T, N, d = q_TNd.shape
    S, M = tables_SM.shape
    G, page, size = launch.caches(k_PGBd, v_PGBd)
    assert size == d, f"heads of {d} on a cache of {size}"
    assert N % G == 0, f"{N} heads on {G}"
    for tensor, shape in ((tables_SM, (S, M)), (starts_S1, (S + 1,)), (contexts_S, (S,))):
        launch.check(tensor, launch.I32, *shape)
    stride, scale = launch.heads(q_TNd), scale * math.log2(math.e)
    out = q_TNd.new_empty(T, N, d)
    kind: launch.Product = "bf16" if k_PGBd.dtype == torch.bfloat16 and not INTERPRETED else "f32"
    if T != S:
        prefill(q_TNd, k_PGBd, v_PGBd, tables_SM, starts_S1, contexts_S, scale, out, kind)
        return out
    keys, parts = KEYS[kind], parts_of(S, G, M * page, q_TNd.device)
    acc, best, total = q_TNd.new_empty(S * N, parts, d), q_TNd.new_empty(S * N, parts), q_TNd.new_empty(S * N, parts)
    _decode[(S * G, parts)](
        q_TNd, k_PGBd, v_PGBd, tables_SM, contexts_S, acc, best, total, stride, M, G, d, scale,
        GROUP=N // G, PAGE=page, HEADS=launch.pow2(N // G, 16), SIZE=launch.pow2(d, 16), KEYS=keys, LEAST=LEAST,
        PRODUCT=kind, num_warps=4, num_stages=2,
    )  # fmt: skip
    _merge[(S * N,)](
        acc, best, total, contexts_S, out, N, parts, d,
        PARTS=8 if parts <= 8 else MOST_PARTS, SIZE=launch.pow2(d, 16), KEYS=keys, LEAST=LEAST,
        num_warps=2 if parts <= 8 else 4,
    )  # fmt: skip
    return out
