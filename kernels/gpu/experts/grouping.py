"""Pairs (token, choice) sorted by expert, on the device, in one launch and without a word to the host.

    pair = token * K + choice;  order[starts[e] : starts[e + 1]] are the pairs of expert e, in rising order

Pairs of expert -1 stand before starts[0], where nothing is written.
One program an expert: it counts the ids below its own, which is where its pairs begin, then walks the ids again and
writes the pairs it finds. All programs read the same few kilobytes from the cache; none waits for another.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from .. import launch
from ..kernel import kernel


@kernel("pairs")
def _group(ids_ptr, order_ptr, starts_ptr, pairs, BLOCK: tl.constexpr):
    expert = tl.program_id(0)
    below = tl.zeros([BLOCK], tl.int32)
    for first in range(0, pairs, BLOCK):
        at = first + tl.arange(0, BLOCK)
        ids = tl.load(ids_ptr + at, mask=at < pairs, other=2147483647)
        below += (ids < expert).to(tl.int32)
    place = tl.sum(below, axis=0)
    tl.store(starts_ptr + expert, place)
    for first in range(0, pairs, BLOCK):
        at = first + tl.arange(0, BLOCK)
        mine = tl.load(ids_ptr + at, mask=at < pairs, other=2147483647) == expert
        rank = tl.cumsum(mine.to(tl.int32), axis=0)
        tl.store(order_ptr + place + rank - 1, at, mask=mine)
        place += tl.sum(mine.to(tl.int32), axis=0)
    if expert == tl.num_programs(0) - 1:
        tl.store(starts_ptr + expert + 1, place)


def group(ids_TK: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """order int32 [T * K] and starts int32 [E + 1] for ids int32 [T, K]."""
    pairs, device = ids_TK.numel(), ids_TK.device
    order = torch.empty(pairs, dtype=launch.I32, device=device)
    starts = torch.empty(experts + 1, dtype=launch.I32, device=device)
    _group[(experts,)](ids_TK, order, starts, pairs, BLOCK=128 if pairs <= 128 else 1024)
    return order, starts
