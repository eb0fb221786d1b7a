"""Pairs (token, choice) sorted by expert, on the device, in two launches and without a word to the host.

    pair = token * K + choice;  order[starts[e] : starts[e + 1]] are the pairs of expert e, in rising order;
    its tiles of TILE pairs are tiles[e] to tiles[e + 1] of all, one expert after the other: owners[t] = e

Pairs of expert -1 are nowhere in it: what `order` has behind starts[E] is anything, and `owners` behind tiles[E].

    _count     how many of its pairs each program has of each expert
    _place     a pair's place is what comes before it: the experts below its own, its own in programs before, its own
               in this program. Every program adds up the same counts, some kilobytes from the cache; none waits for
               another. Few pairs are one program, which counts by itself: then there is no launch before it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from .. import launch
from ..kernel import kernel

BLOCK = 256  # pairs of a program, which are compared each with each
COUNTS = 4096  # of a turn of the loop that adds up counts, at least a row


class Groups(NamedTuple):
    """int32: order [pairs], starts [E + 1], tiles [E + 1], owners [as many tiles as there may be]."""

    order: Tensor
    starts: Tensor
    tiles: Tensor
    owners: Tensor


@kernel("pairs")
def _count(ids_ptr, counts_ptr, pairs, BINS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ids = tl.load(ids_ptr + at, mask=at < pairs, other=-1)
    counts = tl.histogram(tl.maximum(ids, 0), BINS, mask=ids >= 0)
    tl.store(counts_ptr + tl.program_id(0) * BINS + tl.arange(0, BINS), counts)


@kernel("pairs", "programs")
def _place(
    ids_ptr, counts_ptr, order_ptr, starts_ptr, tiles_ptr, owners_ptr, pairs, programs, experts,
    TILE: tl.constexpr, ALONE: tl.constexpr, BINS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    PART: tl.constexpr,
):  # fmt: skip
    bins, begin = tl.arange(0, BINS), tl.program_id(0) * BLOCK
    at = begin + tl.arange(0, BLOCK)
    ids = tl.load(ids_ptr + at, mask=at < pairs, other=-1)
    expert, ok = tl.maximum(ids, 0), ids >= 0
    if ALONE:
        count, before = tl.histogram(expert, BINS, mask=ok), tl.zeros([BINS], tl.int32)
    else:
        counts, earlier = tl.zeros([ROWS, BINS], tl.int32), tl.zeros([ROWS, BINS], tl.int32)
        for first in range(0, programs, ROWS):
            row = first + tl.arange(0, ROWS)
            here = tl.load(counts_ptr + row[:, None] * BINS + bins[None, :], mask=(row < programs)[:, None], other=0)
            counts += here
            earlier += tl.where((row < tl.program_id(0))[:, None], here, 0)
        count, before = tl.sum(counts, axis=0), tl.sum(earlier, axis=0)
    starts, most = tl.cumsum(count, axis=0) - count, (count + TILE - 1) // TILE
    tiles = tl.cumsum(most, axis=0) - most
    rank = tl.zeros([BLOCK], tl.int32)
    for first in range(begin, begin + BLOCK, PART):
        other = first + tl.arange(0, PART)
        same = tl.load(ids_ptr + other, mask=other < pairs, other=-1)[None, :] == ids[:, None]
        rank += tl.sum((same & (other[None, :] < at[:, None])).to(tl.int32), axis=1)
    rank += tl.gather(before, expert, 0)
    tl.store(order_ptr + tl.gather(starts, expert, 0) + rank, at, mask=ok)
    tl.store(owners_ptr + tl.gather(tiles, expert, 0) + rank // TILE, ids, mask=ok & (rank % TILE == 0))
    if tl.program_id(0) == 0:
        tl.store(starts_ptr + bins, starts, mask=bins < experts)
        tl.store(tiles_ptr + bins, tiles, mask=bins < experts)
        last = bins == experts - 1
        tl.store(starts_ptr + 1 + bins, starts + count, mask=last)
        tl.store(tiles_ptr + 1 + bins, tiles + most, mask=last)


def most_tiles(pairs: int, experts: int, tile: int) -> int:
    """How many tiles there may be: whole ones, and one of each expert that is not."""
    return pairs // tile + min(pairs, experts)


def group(ids_TK: Tensor, experts: int, tile: int) -> Groups:
    """Of ids int32 [T, K], -1 or below `experts`; with tiles of so many pairs."""
    pairs, device, bins = ids_TK.numel(), ids_TK.device, launch.pow2(experts, 16)
    programs = launch.cdiv(pairs, BLOCK)
    sizes = pairs, experts + 1, experts + 1, most_tiles(pairs, experts, tile)
    groups = Groups(*(torch.empty(size, dtype=launch.I32, device=device) for size in sizes))
    counts = ids_TK if programs == 1 else torch.empty(programs, bins, dtype=launch.I32, device=device)
    if programs > 1:
        _count[(programs,)](ids_TK, counts, pairs, BINS=bins, BLOCK=BLOCK)
    _place[(programs,)](
        ids_TK, counts, *groups, pairs, programs, experts,
        TILE=tile, ALONE=programs == 1, BINS=bins, ROWS=max(1, COUNTS // bins), BLOCK=BLOCK, PART=32,
        num_warps=8,
    )  # fmt: skip
    return groups
