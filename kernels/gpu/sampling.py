"""Logits -> the most probable token of each sequence, on the device.

A vocabulary is cut into parts, a program each; the one that ends last takes the best of them. In both the first among
equals wins, and NaN counts as the largest, so that damaged logits show.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .cores.arrivals import counters, is_last
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
def _best(
    logits_ptr, part_values_ptr, part_ids_ptr, arrived_ptr, values_ptr, ids_ptr, vocabulary,
    BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    row, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    at = part * BLOCK + tl.arange(0, BLOCK)
    logits = tl.load(logits_ptr + row.to(tl.int64) * vocabulary + at, mask=at < vocabulary, other=float("-inf"))
    best, chosen = first_largest(logits, at, 2147483647)
    tl.store(part_values_ptr + row * parts + part, best)
    tl.store(part_ids_ptr + row * parts + part, chosen)
    if is_last(arrived_ptr + row, parts):
        every = tl.arange(0, PARTS)
        of, ok = row * parts + every, every < parts
        values = tl.load(part_values_ptr + of, mask=ok, other=float("-inf"), cache_modifier=".cg")
        ids = tl.load(part_ids_ptr + of, mask=ok, other=2147483647, cache_modifier=".cg")
        most, first = first_largest(values, ids, 2147483647)
        tl.store(values_ptr + row, most)
        tl.store(ids_ptr + row, first.to(tl.int64))


def argmax(logits_SV: Tensor, to: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    S, V = logits_SV.shape
    launch.check(logits_SV, launch.F32, S, V)
    parts, device = launch.cdiv(V, BLOCK), logits_SV.device
    part_values = torch.empty(S, parts, dtype=launch.F32, device=device)
    part_ids = torch.empty(S, parts, dtype=launch.I32, device=device)
    if to is None:
        to = torch.empty(S, dtype=launch.F32, device=device), torch.empty(S, dtype=launch.I64, device=device)
    values, ids = launch.check(to[0], launch.F32, S), launch.check(to[1], launch.I64, S)
    _best[(S, parts)](
        logits_SV, part_values, part_ids, counters(device, "argmax", S), values, ids, V,
        BLOCK=BLOCK, PARTS=launch.pow2(parts), num_warps=8,
    )  # fmt: skip
    return values, ids
