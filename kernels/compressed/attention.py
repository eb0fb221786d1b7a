"""Attention over the last tokens and over entries that stand for older ones, as a sequence of ops.

Letters besides those of `reference.py`: d numbers of a key, which all heads share, 2 r of them turned; J heads of the
indexer, e the size of its queries and keys, E entries, O keys that a token sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..decoder_layer import Block, Pages, Places
from ..packed import Matrix
from .entries import Entries

if TYPE_CHECKING:
    from .. import Ops

TOGETHER = 16  # tokens whose keys are put side by side at once,
KEYS = 16384  # where these are no more keys, or one token's


def together(keys: int) -> int:
    """How many tokens that see so many keys go together."""
    return max(1, min(TOGETHER, KEYS // keys))


@dataclass(frozen=True, kw_only=True)
class EntryIndexer:
    """What chooses entries: weights, and the keys of entries."""

    heads: int
    q: Matrix  # [J e, rank of queries]
    weights: Matrix  # [J, D]
    keys: Entries
    top: int

    def choose(self, ops: Ops, low_TR: Tensor, h_TD: Tensor, places: Places) -> Tensor:
        """The `top` entries with the best score of each token, of equal ones the earlier, in their order: numbers,
        int32 [T, top], -1 behind the last. low: the latent of queries."""
        q_TJe = ops.linear(low_TR, self.q).view(len(low_TR), self.heads, -1)
        ops.rotate_pairs_(q_TJe, self.keys.cos_Pr, self.keys.sin_Pr, places.positions_T)
        batch = places.tables_SM, places.starts_S1, places.contexts_S
        of_keys = self.top, self.keys.rate, self.keys.page
        return ops.choose_entries(q_TJe, ops.linear(h_TD, self.weights), self.keys.rows_P1Be, *batch, *of_keys)


class Side(NamedTuple):
    """What some tokens see of a cache, int64 [t, K], and of these how many, int64 [t]."""

    rows: Tensor  # [P, 1, B, d]
    slots_tK: Tensor
    counts_t: Tensor


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
        ops.rotate_pairs_(k_T1d, *turns)
        ops.store_rows_(self.rows_P1Bd, pages.slots_T, k_T1d)
        if self.entries is not None:
            self.entries.keep(ops, h_TD, places)
        if self.indexer is not None:
            self.indexer.keys.keep(ops, h_TD, places)
        if not wanted:
            return None
        low_TR = ops.rmsnorm(ops.linear(h_TD, self.q_a), self.q_a_norm, self.eps)
        q_TNd = ops.rmsnorm(ops.linear(low_TR, self.q).view(len(h_TD), self.heads, -1), self.ones_d, self.eps)
        ops.rotate_pairs_(q_TNd, *turns)
        out_TNd = self._attend(ops, h_TD, low_TR, q_TNd, places, pages)
        ops.rotate_pairs_(out_TNd, *turns, back=True)
        return ops.linear_by_head(out_TNd.view(len(h_TD), self.groups, -1), self.o_a).flatten(1)

    def _attend(self, ops: Ops, h_TD: Tensor, low_TR: Tensor, q_TNd: Tensor, places: Places, pages: Pages) -> Tensor:
        """float32 [T, N, d]. Where there are entries, each token is a sequence of its own: whatever is beside it, it
        finds its keys in one order."""
        if self.entries is None:
            batch = pages.tables_SM, places.starts_S1, places.contexts_S
            cache = self.rows_P1Bd, self.rows_P1Bd
            return ops.attention(q_TNd, *cache, *batch, self.scale, self.window, self.sinks_N)
        chosen_TO = self._chosen(ops, h_TD, low_TR, places)
        owner_T = torch.repeat_interleave(torch.arange(len(places.contexts_S)), places.starts_S1.diff().long())
        most = int(places.contexts_S.max()) // self.entries.rate if chosen_TO is None else chosen_TO.shape[1]
        found, step = [], together(self.window + most)
        for first in range(0, len(h_TD), step):
            some = slice(first, first + step)
            owner_t, at_t = owner_T[some], places.positions_T[some].long()
            near = self._near(at_t, pages.tables_SM[owner_t])
            far = self._far(at_t, places.tables_SM[owner_t], None if chosen_TO is None else chosen_TO[some])
            found.append(self._attend_some(ops, q_TNd[some], near, far))
        return torch.cat(found)

    def _chosen(self, ops: Ops, h_TD: Tensor, low_TR: Tensor, places: Places) -> Tensor | None:
        """The numbers of the entries that tokens see; None: all that are whole."""
        assert self.entries is not None
        if self.indexer is None or int(places.contexts_S.max()) // self.entries.rate <= self.indexer.top:
            return None
        return self.indexer.choose(ops, low_TR, h_TD, places)

    def _near(self, at_t: Tensor, tables_tM: Tensor) -> Side:
        """The window of tokens at these positions; tables: of its pages, by token."""
        page, first_t = self.rows_P1Bd.shape[2], (at_t - self.window + 1).clamp(min=0)
        places = first_t.unsqueeze(1) + torch.arange(min(self.window, int(at_t.max()) + 1))
        places = places.minimum(at_t.unsqueeze(1))
        slots = tables_tM.gather(1, places // page).long() * page + places % page
        return Side(self.rows_P1Bd, slots, at_t - first_t + 1)

    def _far(self, at_t: Tensor, tables_tM: Tensor, chosen_tO: Tensor | None) -> Side:
        """Their entries: all that are whole, or those that are chosen."""
        assert self.entries is not None
        counts_t = (at_t + 1) // self.entries.rate
        numbers = torch.arange(int(counts_t.max())).expand(len(at_t), -1) if chosen_tO is None else chosen_tO
        if chosen_tO is not None:
            counts_t = (chosen_tO >= 0).sum(1)
        return Side(self.entries.rows_P1Be, self.entries.slots(numbers, tables_tM), counts_t)

    def _attend_some(self, ops: Ops, q_tNd: Tensor, near: Side, far: Side) -> Tensor:
        """float32 [t, N, d]: each token is a sequence of its own, in a cache of pages that hold one key."""
        many, width = near.slots_tK.numel(), near.slots_tK.shape[1]
        keys = near.rows.new_empty(many + far.slots_tK.numel(), q_tNd.shape[2])
        for side, to in ((near, keys[:many]), (far, keys[many:])):
            torch.index_select(side.rows.flatten(0, 2), 0, side.slots_tK.flatten(), out=to)
        counts_t = near.counts_t + far.counts_t
        at, t = torch.arange(int(counts_t.max())), torch.arange(len(q_tNd)).unsqueeze(1)
        behind = many + t * far.slots_tK.shape[1] + at - near.counts_t.unsqueeze(1)
        table = torch.where(at < near.counts_t.unsqueeze(1), t * width + at, behind)
        table = table.clamp(max=len(keys) - 1).to(torch.int32)
        starts = torch.arange(len(q_tNd) + 1, dtype=torch.int32)
        cache = keys.view(-1, 1, 1, keys.shape[1])
        return ops.attention(
            q_tNd, cache, cache, table, starts, counts_t.to(torch.int32), self.scale, None, self.sinks_N
        )
