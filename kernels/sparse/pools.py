"""What chooses keys run by run: a run of neighbouring keys has one of its own, which is made of them once, when the
last of them comes, and lies in the cache where that did.

Letters besides those of `choose.py`: F numbers of a row of the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..blocks import cache_rows
from ..packed import Matrix

if TYPE_CHECKING:
    from ..decoder_layer import Places


@dataclass(frozen=True)
class Pools:
    """gate: [e, D], what a key is weighted by, plus what its place in a run is, float32 [n, e]."""

    gate: Matrix
    places_ne: Tensor

    @property
    def size(self) -> int:
        return len(self.places_ne)


def ended_runs(rows_P1BF: Tensor, places: Places, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The runs of n keys that end with a new token of a pass: what the cache has of their keys, float32 [R, n, F], the
    slots of their last ones, int64 [R], and the positions of their first ones, int32 [R]."""
    page, at_T = rows_P1BF.shape[2], places.positions_T.long()
    is_last = (at_T + 1) % n == 0
    owner_T = torch.repeat_interleave(torch.arange(len(places.contexts_S)), places.starts_S1.diff().long())
    run_Rn = at_T[is_last].unsqueeze(1) + torch.arange(1 - n, 1)
    pages_Rn = places.tables_SM[owner_T[is_last]].gather(1, run_Rn // page).long()
    rows_Rnf = cache_rows.widen(rows_P1BF.flatten(0, 2)[pages_Rn * page + run_Rn % page])
    return rows_Rnf, places.slots_T[is_last], run_Rn[:, 0].to(torch.int32).contiguous()


def seen_keys(runs_TO: Tensor, places: Places, page: int, top: int, n: int) -> Tensor:
    """Where the keys lie of the runs that tokens see, and of those behind their last whole run: int32 [T, top], slots
    in the order of positions, -1 behind the last. runs: int32 [T, .], in order, -1 behind the last."""
    at_T1 = places.positions_T.long().unsqueeze(1)
    count_T1 = (runs_TO >= 0).sum(1, keepdim=True) * n
    behind_T1 = (at_T1 + 1) // n * n
    j = torch.arange(top)
    run = runs_TO.long().clamp(min=0).gather(1, (j // n).clamp(max=runs_TO.shape[1] - 1).expand(len(runs_TO), -1))
    places_TO = torch.where(j < count_T1, run * n + j % n, behind_T1 + j - count_T1)
    is_seen = places_TO <= at_T1
    there = places_TO.minimum(at_T1)
    owner_T = torch.repeat_interleave(torch.arange(len(places.contexts_S)), places.starts_S1.diff().long())
    slots = places.tables_SM[owner_T].gather(1, there // page).long() * page + there % page
    return slots.masked_fill(~is_seen, -1).to(torch.int32)
