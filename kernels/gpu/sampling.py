"""Logits -> the most probable token of each sequence, on the device.

A vocabulary is cut into parts, a program each; `_best` takes the best of them. In both the first among equals wins, and
NaN counts as the largest, so that damaged logits show.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .kernel import kernel

BLOCK = 4096


@triton.jit
def first_largest(values, ids, MOST: tl.constexpr):
    """The largest of the values, NaN if one is NaN, and the lowest id that has it."""
    bad = (values != values).to(tl.int32)
    best = tl.max(tl.where(bad > 0, float("-inf"), values), axis=0)
    damaged = tl.max(bad, axis=0) > 0
    has_it = tl.where(damaged, bad, (values == best).to(tl.int32)) > 0
    return tl.where(damaged, float("nan"), best), tl.min(tl.where(has_it, ids, MOST), axis=0)


@kernel()
def _best_of_part(logits_ptr, values_ptr, ids_ptr, vocabulary, BLOCK: tl.constexpr):
    row, part = tl.program_id(0), tl.program_id(1)
    at = part * BLOCK + tl.arange(0, BLOCK)
    logits = tl.load(logits_ptr + row.to(tl.int64) * vocabulary + at, mask=at < vocabulary, other=float("-inf"))
    best, chosen = first_largest(logits, at, 2147483647)
    tl.store(values_ptr + row * tl.num_programs(1) + part, best)
    tl.store(ids_ptr + row * tl.num_programs(1) + part, chosen)


@kernel()
def _best(part_values_ptr, part_ids_ptr, values_ptr, ids_ptr, parts, BLOCK: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    values = tl.load(part_values_ptr + row * parts + at, mask=at < parts, other=float("-inf"))
    ids = tl.load(part_ids_ptr + row * parts + at, mask=at < parts, other=2147483647)
    best, chosen = first_largest(values, ids, 2147483647)
    tl.store(values_ptr + row, best)
    tl.store(ids_ptr + row, chosen.to(tl.int64))


def argmax(logits_SV: Tensor, to: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    S, V = logits_SV.shape
    launch.check(logits_SV, launch.F32, S, V)
    parts, device = launch.cdiv(V, BLOCK), logits_SV.device
    part_values = torch.empty(S, parts, dtype=launch.F32, device=device)
    part_ids = torch.empty(S, parts, dtype=launch.I32, device=device)
    if to is None:
        to = torch.empty(S, dtype=launch.F32, device=device), torch.empty(S, dtype=launch.I64, device=device)
    values, ids = launch.check(to[0], launch.F32, S), launch.check(to[1], launch.I64, S)
    _best_of_part[(S, parts)](logits_SV, part_values, part_ids, V, BLOCK=BLOCK, num_warps=8)
    _best[(S,)](part_values, part_ids, values, ids, parts, BLOCK=launch.pow2(parts), num_warps=1)
    return values, ids
