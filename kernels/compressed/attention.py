"""Attention over the last tokens and over entries that stand for older ones, as a sequence of ops.

Letters besides those of `reference.py`: d numbers of a key, which all heads share, 2 r of them turned; J heads of the
indexer, e the size of its queries and keys, E entries, O keys that a token sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..decoder_layer import Block, Pages, Places
from ..packed import Matrix
from .entries import Entries
from .pairs import turn_pairs_

if TYPE_CHECKING:
    from .. import Ops

TOGETHER = 16  # tokens whose keys are put side by side at once
SEGMENT = 4096  # entries whose products with the queries of the indexer are in memory at once


@dataclass(frozen=True, kw_only=True)
class EntryIndexer:
    """What chooses entries: weights, and the keys of entries."""

    heads: int
    q: Matrix  # [J e, rank of queries]
    weights: Matrix  # [J, D]
    keys: Entries
    top: int

    def queries(self, ops: Ops, low_TR: Tensor, places: Places) -> Tensor:
        """float32 [T, J, e]."""
        q_TJe = ops.linear(low_TR, self.q).view(len(low_TR), self.heads, -1)
        turn_pairs_(q_TJe, self.keys.cos_Pr, self.keys.sin_Pr, places.positions_T)
        return q_TJe

    def choose(self, q_tJe: Tensor, weights_tJ: Tensor, counts_t: Tensor, table_M: Tensor) -> Tensor:
        """The `top` entries with the best score of each token, of equal ones the earlier, in their order: int64
        [t, top], -1 behind the last. counts: how many entries a token may see."""
        most = int(counts_t.max())
        found = []
        for first in range(0, most, SEGMENT):
            keys_Ee = self.keys.of(torch.arange(first, min(first + SEGMENT, most)), table_M).float()
            products = torch.einsum("tje,ce->tjc", q_tJe, keys_Ee).clamp(min=0)
            found.append(torch.einsum("tj,tjc->tc", weights_tJ, products))
        hidden = torch.arange(most) >= counts_t.unsqueeze(1)
        scores = torch.cat(found, dim=1).masked_fill(hidden, float("-inf"))
        best = scores.sort(dim=1, descending=True, stable=True).indices[:, : self.top]
        best = best.masked_fill(best >= counts_t.unsqueeze(1), most).sort(dim=1).values
        return best.masked_fill(best == most, -1)


@dataclass(frozen=True, kw_only=True)
class CompressedBlock(Block):
    """Weights, cache and constants. kind: of the window's pages, see `Places.of`; entries lie in those of layers that
    see everything."""

    heads: int
    q_a: Matrix  # [R, D]
    q_a_norm: Tensor  # float32
    q: Matrix  # [N d, R]
    ones_d: Tensor  # float32, the weights of queries' norm
    k: Matrix  # [d, D]
    k_norm: Tensor
    sinks_N: Tensor
    o_a: Matrix  # of each group of heads [., N d / groups], one below the other
    groups: int
    rows_P1Bd: Tensor
    kind: int
    cos_Pr: Tensor
    sin_Pr: Tensor
    scale: float
    window: int
    entries: Entries | None = None
    indexer: EntryIndexer | None = None  # None: all entries are seen

    @property
    def by_ops(self) -> bool:
        return True

    def mix(self, ops: Ops, h_TD: Tensor, places: Places, wanted: bool) -> Tensor | None:
        turns, pages = (self.cos_Pr, self.sin_Pr, places.positions_T), places.of(self.kind)
        k_T1d = ops.rmsnorm(ops.linear(h_TD, self.k), self.k_norm, self.eps).unsqueeze(1)
        turn_pairs_(k_T1d, *turns)
        ops.store_rows_(self.rows_P1Bd, pages.slots_T, k_T1d)
        if self.entries is not None:
            self.entries.keep(ops, h_TD, places)
        if self.indexer is not None:
            self.indexer.keys.keep(ops, h_TD, places)
        if not wanted:
            return None
        low_TR = ops.rmsnorm(ops.linear(h_TD, self.q_a), self.q_a_norm, self.eps)
        q_TNd = ops.rmsnorm(ops.linear(low_TR, self.q).view(len(h_TD), self.heads, -1), self.ones_d, self.eps)
        turn_pairs_(q_TNd, *turns)
        out_TNd = self._attend(ops, h_TD, low_TR, q_TNd, places, pages)
        turn_pairs_(out_TNd, *turns, back=True)
        return ops.linear_by_head(out_TNd.view(len(h_TD), self.groups, -1), self.o_a).flatten(1)

    def _attend(self, ops: Ops, h_TD: Tensor, low_TR: Tensor, q_TNd: Tensor, places: Places, pages: Pages) -> Tensor:
        """float32 [T, N, d]."""
        rate = 0 if self.entries is None else self.entries.rate
        if not rate or int(places.contexts_S.max()) < rate:
            batch = pages.tables_SM, places.starts_S1, places.contexts_S
            cache = self.rows_P1Bd, self.rows_P1Bd
            return ops.attention(q_TNd, *cache, *batch, self.scale, self.window, self.sinks_N)
        index = None
        if self.indexer is not None and int(places.contexts_S.max()) // rate > self.indexer.top:
            index = self.indexer.queries(ops, low_TR, places), ops.linear(h_TD, self.indexer.weights)
        starts, found = places.starts_S1.tolist(), []
        for s in range(len(starts) - 1):
            tables = places.tables_SM[s], pages.tables_SM[s]
            for first in range(starts[s], starts[s + 1], TOGETHER):
                some = slice(first, min(first + TOGETHER, starts[s + 1]))
                chosen = None if index is None else (index[0][some], index[1][some])
                found.append(self._attend_some(ops, q_TNd[some], places.positions_T[some].long(), tables, chosen))
        return torch.cat(found)

    def _attend_some(
        self,
        ops: Ops,
        q_tNd: Tensor,
        at_t: Tensor,
        tables: tuple[Tensor, Tensor],
        index: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """float32 [t, N, d] of neighbouring tokens of one sequence: each is a sequence of its own, in a cache of pages
        that hold one key, of those that any of them sees. tables: of entries, and of the window."""
        keys, seen_tO, counts_t = self._window(at_t, tables[1])
        entries, chosen_tO, chosen_t = self._entries(at_t, tables[0], index)
        cache = torch.cat([keys, entries]).view(-1, 1, 1, q_tNd.shape[2])
        table = _side_by_side(seen_tO, counts_t, chosen_tO + len(keys), chosen_t)
        starts = torch.arange(len(at_t) + 1, dtype=torch.int32)
        contexts = (counts_t + chosen_t).to(torch.int32)
        return ops.attention(q_tNd, cache, cache, table, starts, contexts, self.scale, None, self.sinks_N)

    def _window(self, at_t: Tensor, table_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys of the window's tokens [K, d], which of them each token sees, int64 [t, window], and how many."""
        page, begin = self.rows_P1Bd.shape[2], max(0, int(at_t[0]) - self.window + 1)
        places = torch.arange(begin, int(at_t[-1]) + 1)
        keys = self.rows_P1Bd[table_M[places // page].long(), 0, places % page]
        first_t = (at_t - self.window + 1).clamp(min=0)
        return keys, first_t.unsqueeze(1) - begin + torch.arange(self.window), at_t - first_t + 1

    def _entries(
        self, at_t: Tensor, table_M: Tensor, index: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same of entries: all that are whole, or those that are chosen."""
        assert self.entries is not None
        counts_t = (at_t + 1) // self.entries.rate
        most = int(counts_t.max())
        if index is None or self.indexer is None or most <= self.indexer.top:
            numbers = torch.arange(most)
            return self.entries.of(numbers, table_M), numbers.expand(len(at_t), -1), counts_t
        best_tO = self.indexer.choose(*index, counts_t, table_M)
        numbers, places = best_tO.clamp(min=0).unique(return_inverse=True)
        return self.entries.of(numbers, table_M), places, (best_tO >= 0).sum(1)


def _side_by_side(a_tO: Tensor, counts_a: Tensor, b_tO: Tensor, counts_b: Tensor) -> Tensor:
    """The first numbers of each row of both, without a gap: int32 [t, .]; behind them stands any number of them."""
    width = int((counts_a + counts_b).max())
    at = torch.arange(width).expand(len(a_tO), -1)
    own, other = at.clamp(max=a_tO.shape[1] - 1), (at - counts_a.unsqueeze(1)).clamp(0, max(b_tO.shape[1] - 1, 0))
    first = a_tO.gather(1, own)
    if not b_tO.shape[1]:
        return first.to(torch.int32).contiguous()
    return torch.where(at < counts_a.unsqueeze(1), first, b_tO.gather(1, other)).to(torch.int32).contiguous()
