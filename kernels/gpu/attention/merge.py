"""Parts of a context, each attended by a program of its own, and how they are joined: by whichever program ends last
(`joined`), or by a launch of its own (`Parts.merge`).

The number of parts follows from the size of the page table, so that the grid is fixed; how long a part is follows from
the context, on the device. Programs without keys end at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import launch
from ..kernel import kernel
from .asked import Asked
from .softmax import with_sink

LEAST = 256  # keys that make a part worth a program
MOST_PARTS = 64
JOINED = 8192  # numbers that a program joins at a time


@triton.jit
def seen_of(context, WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """Keys that the last token of a context sees: those within the WINDOW, and in its own CHUNK; 0: all."""
    seen = context
    if CHUNK > 0:
        seen = (context - 1) % CHUNK + 1
    if WINDOW > 0:
        seen = tl.minimum(seen, WINDOW)
    return seen


@triton.jit
def part_length(seen, parts, LEAST: tl.constexpr, KEYS: tl.constexpr):
    """Keys of one part: whole steps, at least LEAST."""
    return tl.maximum(tl.cdiv(tl.cdiv(seen, parts), KEYS) * KEYS, LEAST)


@triton.jit
def joined(
    acc_ptr, best_ptr, total_ptr, row, ok, count, parts, size,
    HEADS: tl.constexpr, SIZE: tl.constexpr, PARTS: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """The `count` parts of rows [HEADS] that are `ok`, PARTS at a time: the largest score and the sum of weights beside
    it, [HEADS], and the weighted sum of values, [HEADS, SIZE]. In this order whoever comes last."""
    part, dims = tl.arange(0, MOST)[None, :], tl.arange(0, SIZE)[None, None, :]
    at, here = row[:, None] * parts + part, ok[:, None] & (part < count)
    scores = tl.load(best_ptr + at, mask=here, other=float("-inf"), cache_modifier=".cg")
    best = tl.where(ok, tl.max(scores, axis=1), 0.0)
    totals = tl.load(total_ptr + at, mask=here, other=0.0, cache_modifier=".cg")
    total = tl.sum(totals * tl.exp2(scores - best[:, None]), axis=1)
    acc = tl.zeros([HEADS, SIZE], tl.float32)
    for first in range(0, count, PARTS):
        some = first + tl.arange(0, PARTS)[None, :]
        places, there = row[:, None] * parts + some, ok[:, None] & (some < count)
        share = tl.exp2(
            tl.load(best_ptr + places, mask=there, other=float("-inf"), cache_modifier=".cg") - best[:, None]
        )
        mask = there[:, :, None] & (dims < size)
        sums = tl.load(acc_ptr + places[:, :, None] * size + dims, mask=mask, other=0.0, cache_modifier=".cg")
        acc += tl.sum(sums * share[:, :, None], axis=1)
    return best, total, acc


@kernel("parts")
def _merge(
    acc_ptr, best_ptr, total_ptr, contexts_ptr, sinks_ptr, out_ptr, n_heads, parts, size,
    PARTS: tl.constexpr, SIZE: tl.constexpr, KEYS: tl.constexpr, LEAST: tl.constexpr, WINDOW: tl.constexpr,
    CHUNK: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    context = tl.load(contexts_ptr + row // n_heads)
    part, dims = tl.arange(0, PARTS), tl.arange(0, SIZE)
    seen = seen_of(context, WINDOW, CHUNK)
    ok = part < tl.cdiv(seen, part_length(seen, parts, LEAST, KEYS))
    best = tl.load(best_ptr + row * parts + part, mask=ok, other=float("-inf"))
    most = tl.max(best, axis=0)
    share = tl.exp2(best - most)
    total = tl.sum(share * tl.load(total_ptr + row * parts + part, mask=ok, other=0.0), axis=0)
    mask = ok[:, None] & (dims < size)[None, :]
    acc = tl.load(acc_ptr + (row * parts + part[:, None]) * size + dims[None, :], mask=mask, other=0.0)
    out = tl.sum(acc * share[:, None], axis=0)
    if SINKS:
        total, kept = with_sink(most, total, tl.load(sinks_ptr + row % n_heads))
        out *= kept
    tl.store(out_ptr + row * size + dims, out / total, mask=dims < size)


def parts_of(sequences: int, groups: int, keys: int, device: torch.device) -> int:
    """Parts of a context of at most `keys`: about two programs a multiprocessor, none with fewer than LEAST keys."""
    wanted = launch.cdiv(2 * launch.multiprocessors(device), sequences * groups)
    return max(1, min(wanted, launch.cdiv(keys, LEAST), MOST_PARTS))


class Parts:
    """What the programs of a decode step leave for `merge`: for each sequence, head and part the weighted sum of
    values, the largest score, and the sum of weights."""

    def __init__(self, q_TNd: Tensor, size: int, parts: int) -> None:
        rows = q_TNd.shape[0] * q_TNd.shape[1]
        self.parts, self.acc = parts, q_TNd.new_empty(rows, parts, size)
        self.best, self.total = q_TNd.new_empty(rows, parts), q_TNd.new_empty(rows, parts)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.acc, self.best, self.total

    def merge(self, it: Asked, keys: int) -> None:
        """Joins them into what was asked for; keys: of a step, as in the kernel that made the parts."""
        _merge[(it.T * it.N,)](
            *self.tensors, it.contexts, it.sinks_or_any, it.out, it.N, self.parts, it.v,
            PARTS=8 if self.parts <= 8 else MOST_PARTS, SIZE=launch.pow2(it.v, 16), KEYS=keys, LEAST=LEAST,
            WINDOW=it.window, CHUNK=it.chunk, SINKS=it.sinks is not None, num_warps=2 if self.parts <= 8 else 4,
        )  # fmt: skip
