"""What chooses the blocks of keys that grouped-query attention sees, and attention to those alone, as sequences of ops.

Letters besides those of `reference.py`: e the size of the indexer's queries and keys, of which there is a query for
each of the G heads of keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..blocks.cache_rows import Rows
from ..decoder_layer import Places
from ..packed import Matrix

if TYPE_CHECKING:
    from .. import Ops


@dataclass(frozen=True, kw_only=True)
class BlockIndexer:
    """Weights and cache. What it rotates are the first dims of queries and keys. size: keys of a block, a multiple of a
    page's tokens; top: blocks that are seen, of which the `local` last ones always are."""

    q: Matrix  # [G e, D]
    k: Matrix  # [e, D]
    q_norm_e: Tensor  # float32
    k_norm_e: Tensor
    eps: float
    keys_P1Be: Tensor
    cos_Pr: Tensor
    sin_Pr: Tensor
    size: int
    top: int
    local: int

    @property
    def seen(self) -> int:
        """The longest context that is seen as a whole."""
        return self.size * self.top

    def keep(self, ops: Ops, h_TD: Tensor, places: Places) -> None:
        """Writes the keys of new tokens into the cache."""
        k_T1e = ops.rmsnorm(ops.linear(h_TD, self.k), self.k_norm_e, self.eps).unsqueeze(1)
        ops.rotate_(k_T1e, self.cos_Pr, self.sin_Pr, places.positions_T)
        ops.store_rows_(self.keys_P1Be, places.slots_T, k_T1e)

    def attend(
        self, ops: Ops, h_TD: Tensor, q_TNd: Tensor, k_PGBd: Rows, v_PGBv: Rows, places: Places, scale: float
    ) -> Tensor:
        """Attention of new tokens to the keys that are seen: float32 [T, N, v]. Each token is for each head of keys a
        sequence of its own, of the pages of its blocks alone."""
        assert isinstance(k_PGBd, Tensor), "chosen blocks in q8_0, whose scales are a page's"
        assert isinstance(v_PGBv, Tensor), "chosen blocks in q8_0, whose scales are a page's"
        (T, N, d), G = q_TNd.shape, k_PGBd.shape[1]
        tables, contexts = self._tables(self._blocks(ops, h_TD, places, G), places, G)
        k, v = (cache.view(-1, 1, *cache.shape[2:]) for cache in (k_PGBd, v_PGBv))
        starts = torch.arange(T * G + 1, dtype=torch.int32)
        out = ops.attention(q_TNd.reshape(T * G, N // G, d), k, v, tables, starts, contexts, scale)
        return out.view(T, N, -1)

    def _blocks(self, ops: Ops, h_TD: Tensor, places: Places, groups: int) -> Tensor:
        """The blocks that each token sees for each head of keys, in their order: int64 [T, G, top], -1 behind the
        last."""
        q_TGe = ops.linear(h_TD, self.q).view(len(h_TD), groups, -1)
        q_TGe = ops.rmsnorm(q_TGe, self.q_norm_e, self.eps)
        ops.rotate_(q_TGe, self.cos_Pr, self.sin_Pr, places.positions_T)
        batch = places.tables_SM, places.starts_S1, places.contexts_S
        return ops.choose_blocks(q_TGe, self.keys_P1Be, *batch, self.size, self.top, self.local).long()

    def _tables(self, blocks_TGO: Tensor, places: Places, groups: int) -> tuple[Tensor, Tensor]:
        """The pages of blocks, in a cache in which each head's part of a page is a page, and contexts: int32 [T G, .]
        and [T G]. Behind those of a token stands any page."""
        page, T = self.keys_P1Be.shape[2], len(blocks_TGO)
        each, positions = self.size // page, places.positions_T.long()
        starts = places.starts_S1.tolist()
        owner_T = torch.repeat_interleave(torch.arange(len(starts) - 1), places.starts_S1.diff().long())
        numbers = blocks_TGO.clamp(min=0).unsqueeze(3) * each + torch.arange(each)
        numbers = numbers.flatten(2).clamp(max=places.tables_SM.shape[1] - 1)
        pages = places.tables_SM[owner_T].long().unsqueeze(1).expand(-1, groups, -1).gather(2, numbers)
        tables = pages.clamp(min=0) * groups + torch.arange(groups).view(1, -1, 1)
        count_TG = (blocks_TGO >= 0).sum(2)
        contexts = (count_TG - 1) * self.size + (positions % self.size + 1).unsqueeze(1)
        return tables.view(T * groups, -1).to(torch.int32).contiguous(), contexts.flatten().to(torch.int32)
