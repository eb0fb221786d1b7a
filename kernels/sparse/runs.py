"""What chooses the keys that grouped-query attention sees, run by run, and attention to those alone.

Letters besides those of `reference.py`: J queries of a token, e the size of these and of its key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..blocks.cache_rows import Rows
from ..decoder_layer import Places
from ..packed import Matrix
from .pools import ended_runs, seen_keys

if TYPE_CHECKING:
    from .. import Ops


@dataclass(frozen=True, kw_only=True)
class RunIndexer:
    """Weights and cache. What it rotates are the first dims of queries and of a run's key. top: keys that are seen; n:
    those of a run."""

    heads: int
    q: Matrix  # [J e, D]
    k: Matrix  # [e, D]
    q_norm_e: Tensor  # float32
    k_norm_e: Tensor
    eps: float
    keys_P1Be: Tensor
    cos_Pr: Tensor
    sin_Pr: Tensor
    top: int
    n: int

    @property
    def seen(self) -> int:
        """The longest context that is seen as a whole."""
        return self.top

    def keep(self, ops: Ops, h_TD: Tensor, places: Places) -> None:
        """Writes the keys of new tokens into the cache, as they are projected, and in the place of the last one of a
        run that of the run: their mean, rotated as the first of them."""
        ops.store_rows_(self.keys_P1Be, places.slots_T, ops.linear(h_TD, self.k).unsqueeze(1))
        rows_Rne, slots_R, firsts_R = ended_runs(self.keys_P1Be, places, self.n)
        if not len(slots_R):
            return
        shares_Rn = rows_Rne.new_full(rows_Rne.shape[:2], 1 / self.n)
        keys_R1e = ops.take_streams(rows_Rne, shares_Rn, self.k_norm_e, self.eps).unsqueeze(1)
        ops.rotate_(keys_R1e, self.cos_Pr, self.sin_Pr, firsts_R)
        ops.store_rows_(self.keys_P1Be, slots_R, keys_R1e)

    def attend(
        self, ops: Ops, h_TD: Tensor, q_TNd: Tensor, k_PGBd: Rows, v_PGBv: Rows, places: Places, scale: float
    ) -> Tensor:
        """Attention of new tokens to the keys that are seen: float32 [T, N, v]. Each token is for each head of keys a
        sequence of its own, in a cache of pages that hold one key of one head."""
        assert isinstance(k_PGBd, Tensor), "chosen keys in q8_0, whose scales are a page's"
        assert isinstance(v_PGBv, Tensor), "chosen keys in q8_0, whose scales are a page's"
        (T, N, d), (_, G, B, _) = q_TNd.shape, k_PGBd.shape
        slots_TO = self._slots(ops, h_TD, places)
        there = slots_TO.clamp(min=0).long().unsqueeze(1)
        tables = (there // B * G + torch.arange(G).view(1, -1, 1)) * B + there % B
        contexts = (slots_TO >= 0).sum(1, dtype=torch.int32).repeat_interleave(G)
        k, v = (cache.view(-1, 1, 1, cache.shape[3]) for cache in (k_PGBd, v_PGBv))
        starts = torch.arange(T * G + 1, dtype=torch.int32)
        wide = tables.view(T * G, -1).to(torch.int32)
        return ops.attention(q_TNd.reshape(T * G, N // G, d), k, v, wide, starts, contexts, scale).view(T, N, -1)

    def _slots(self, ops: Ops, h_TD: Tensor, places: Places) -> Tensor:
        """Where the keys lie that new tokens see: int32 [T, top], -1 behind the last."""
        q_TJe = ops.rmsnorm(ops.linear(h_TD, self.q).view(len(h_TD), self.heads, -1), self.q_norm_e, self.eps)
        ops.rotate_(q_TJe, self.cos_Pr, self.sin_Pr, places.positions_T)
        batch = places.tables_SM, places.starts_S1, places.contexts_S
        ones_TJ, page = q_TJe.new_ones(q_TJe.shape[:2]), self.keys_P1Be.shape[2]
        runs = (self.top - self.n + 1) // self.n
        runs_TO = ops.choose_entries(q_TJe, ones_TJ, self.keys_P1Be, *batch, runs, self.n, page)
        return seen_keys(runs_TO, places, page, self.top, self.n)
