"""What chooses keys run by run: a run of neighbouring keys has the mean of the indexer's, weighted dim by dim.

Letters besides those of `choose.py`: n keys of a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..blocks import cache_rows
from ..packed import Matrix

TOGETHER = 16  # tokens whose scores of all keys or runs are in memory at once


@dataclass(frozen=True)
class Pools:
    """gate: [e, D], what a key is weighted by, plus what its place in a run is, float32 [n, e]."""

    gate: Matrix
    places_ne: Tensor

    @property
    def size(self) -> int:
        return len(self.places_ne)


def by_sequence(
    rows_P1Be: Tensor, tables_SM: Tensor, starts_S1: Tensor, contexts_S: Tensor
) -> Iterator[tuple[Tensor, Tensor, list[slice]]]:
    """Of each sequence its pages, what the cache has of its keys, float32 [C, e], and its new tokens, some at once."""
    page, starts = rows_P1Be.shape[2], starts_S1.tolist()
    for s, context in enumerate(contexts_S.tolist()):
        pages = tables_SM[s, : -(-context // page)].long()
        rows_Ce = cache_rows.widen(rows_P1Be[pages])[:, 0].flatten(0, 1)[:context]
        first, last = starts[s], starts[s + 1]
        yield pages, rows_Ce, [slice(at, min(at + TOGETHER, last)) for at in range(first, last, TOGETHER)]


def choose_runs(
    q_TJe: Tensor,
    weights_TJ: Tensor,
    rows_P1Bf: Tensor,
    tables_SM: Tensor,
    starts_S1: Tensor,
    contexts_S: Tensor,
    top: int,
    places_ne: Tensor,
) -> Tensor:
    """As `choose_keys` does, of whole runs: int32 [T, top]. A token sees the best runs that end with it or before, so
    many as fit into `top` less a run's end, and the keys behind the last whole run. rows: in the cache, of each token
    its key and then what it is weighted by, f = 2 e."""
    (T, _, e), n, page = q_TJe.shape, len(places_ne), rows_P1Bf.shape[2]
    found = torch.full((T, top), -1, dtype=torch.int32)
    for pages, rows_Cf, tokens in by_sequence(rows_P1Bf, tables_SM, starts_S1, contexts_S):
        context = len(rows_Cf)
        runs_Rnf = rows_Cf[: context // n * n].unflatten(0, (-1, n))
        shares = (runs_Rnf[..., e:] + places_ne).softmax(1)
        keys_Re = (shares * runs_Rnf[..., :e]).sum(1)
        for some in tokens:
            at_T = torch.arange(some.start, some.stop) + context - tokens[-1].stop
            products = torch.einsum("tje,re->tjr", q_TJe[some], keys_Re).clamp(min=0)
            scores = torch.einsum("tj,tjr->tr", weights_TJ[some], products)
            found[some] = slots_of(seen_runs(scores, at_T, top, n), pages, page)
    return found


def slots_of(places_TO: Tensor, pages_M: Tensor, page: int) -> Tensor:
    """Where keys at these positions of a sequence lie: int32, -1 where there is none."""
    there = places_TO.clamp(min=0)
    return (pages_M[there // page] * page + there % page).masked_fill(places_TO < 0, -1).to(torch.int32)


def seen_runs(scores_TR: Tensor, at_T: Tensor, top: int, n: int) -> Tensor:
    """Positions that tokens at these positions see, in order: int64 [T, top], -1 behind the last."""
    runs = scores_TR.shape[1]
    whole = torch.arange(runs) * n + n - 1 <= at_T.unsqueeze(1)
    scores = scores_TR.masked_fill(~whole, float("-inf"))
    best = scores.sort(dim=1, descending=True, stable=True).indices[:, : (top - n + 1) // n]
    kept = whole.gather(1, best)
    none = at_T.max() + 1
    chosen = (best.unsqueeze(2) * n + torch.arange(n)).masked_fill(~kept.unsqueeze(2), none).flatten(1)
    behind = (at_T.unsqueeze(1) + 1) // n * n + torch.arange(n - 1)
    behind = behind.masked_fill(behind > at_T.unsqueeze(1), none)
    places = torch.cat([chosen, behind], dim=1).sort(dim=1).values
    places = torch.nn.functional.pad(places, (0, top - places.shape[1]), value=int(none))
    return places.masked_fill(places == none, -1)
