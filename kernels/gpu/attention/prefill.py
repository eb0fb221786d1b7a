"""Attention of many new tokens over the paged cache: tiles of QUERIES tokens of one head, over the keys they may see.

Sequences differ in length, and the host does not look at their lengths: the grid has a program for every block that T
tokens of S sequences could need, and each finds its sequence from the starts. Blocks that do not exist end at once.
"""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from .. import launch
from ..kernel import kernel
from .softmax import attend


@kernel("table_stride", "sequences")
def _prefill(
    q_ptr, k_ptr, v_ptr, tables_ptr, starts_ptr, contexts_ptr, out_ptr, q_stride, table_stride, sequences, groups, size,
    scale, N_HEADS: tl.constexpr, GROUP: tl.constexpr, PAGE: tl.constexpr, QUERIES: tl.constexpr, SIZE: tl.constexpr,
    KEYS: tl.constexpr, SEQUENCES: tl.constexpr, PRODUCT: tl.constexpr,
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
        dims = tl.arange(0, SIZE)
        ok = (token < end)[:, None] & (dims < size)[None, :]
        at = token.to(tl.int64)[:, None]
        q = tl.load(q_ptr + at * q_stride + head * size + dims[None, :], mask=ok, other=0.0) * scale
        best = tl.full([QUERIES], float("-inf"), tl.float32)
        total = tl.zeros([QUERIES], tl.float32)
        acc = tl.zeros([QUERIES, SIZE], tl.float32)
        table = tables_ptr + sequence * table_stride
        last = tl.minimum(context, tl.max(place, axis=0) + 1)
        for first in range(0, last, KEYS):
            positions = first + tl.arange(0, KEYS)
            seen = positions[None, :] <= place[:, None]
            best, total, acc = attend(
                q, best, total, acc, k_ptr, v_ptr, table, positions, seen, positions < last, head // GROUP, groups,
                size, dims, PAGE, PRODUCT, False,
            )  # fmt: skip
        tl.store(out_ptr + (at * N_HEADS + head) * size + dims[None, :], acc / total[:, None], mask=ok)


def prefill(
    q_TNd: Tensor,
    k_PGBd: Tensor,
    v_PGBd: Tensor,
    tables_SM: Tensor,
    starts_S1: Tensor,
    contexts_S: Tensor,
    scale: float,
    out_TNd: Tensor,
    kind: launch.Product,
) -> None:
    """Writes the attention of T new tokens to `out`; `scale` is in units of log2(e), the rest is checked."""
    T, N, d = q_TNd.shape
    S, M = tables_SM.shape
    G, page, _ = launch.caches(k_PGBd, v_PGBd)
    queries, keys, warps = (128, 64, 8) if kind == "bf16" else (16, 32, 4)
    _prefill[(T // queries + S, N)](
        q_TNd, k_PGBd, v_PGBd, tables_SM, starts_S1, contexts_S, out_TNd, launch.heads(q_TNd), M, S, G, d, scale,
        N_HEADS=N, GROUP=N // G, PAGE=page, QUERIES=queries, SIZE=launch.pow2(d, 16), KEYS=keys,
        SEQUENCES=16 if S <= 16 else launch.pow2(S, 256), PRODUCT=kind, num_warps=warps, num_stages=2,
    )  # fmt: skip
