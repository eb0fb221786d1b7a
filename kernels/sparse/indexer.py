"""What chooses the keys that latent attention sees, as a sequence of ops, and attention to those alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..blocks.cache_rows import Rows
from ..decoder_layer import Places
from ..packed import Matrix
from .log_positions import ByLogs
from .pools import Pools, ended_runs, seen_keys

if TYPE_CHECKING:
    from .. import Ops


@dataclass(frozen=True, kw_only=True)
class Indexer:
    """Weights and cache; letters are those of `choose.py`. What it rotates are the first dims of queries and keys."""

    heads: int
    q: Matrix  # [J e, rank of queries]
    k: Matrix  # [e, D]
    norm_e: Tensor  # float32, the LayerNorm of keys, and its bias
    bias_e: Tensor
    eps: float
    weights: Matrix  # [J, D]
    keys_P1Be: Tensor
    cos_Pr: Tensor
    sin_Pr: Tensor
    in_norm_D: Tensor | None = None  # float32, of the hidden state that queries are made of, and its bias
    in_bias_D: Tensor | None = None
    by_logs: ByLogs | None = None
    pools: Pools | None = None  # keys are chosen run by run; the last of a run has the run's in the place of its own

    def keep(self, ops: Ops, h_TD: Tensor, places: Places) -> None:
        """Writes the keys of new tokens into the cache."""
        turns = self.cos_Pr, self.sin_Pr, places.positions_T
        k_Te = ops.linear(h_TD, self.k)
        if self.pools is not None:
            assert self.cos_Pr.shape[1] == 0, "runs of keys that are rotated"
            normed_Te = ops.layernorm(k_Te, self.norm_e, self.bias_e, self.eps)
            row_Tf = torch.cat([normed_Te, ops.linear(h_TD, self.pools.gate)], dim=1)
            ops.store_rows_(self.keys_P1Be, places.slots_T, row_Tf.unsqueeze(1))
            rows_Rnf, slots_R, _ = ended_runs(self.keys_P1Be, places, self.pools.size)
            if len(slots_R):
                key_Re = ops.pool_runs(rows_Rnf, self.pools.places_ne)
                ops.store_rows_(self.keys_P1Be, slots_R, torch.cat([key_Re, key_Re], dim=1).unsqueeze(1))
            return
        ops.place_index_(self.keys_P1Be, k_Te, self.norm_e, self.bias_e, self.eps, *turns, places.slots_T)

    def choose(self, ops: Ops, h_TD: Tensor, low_TR: Tensor, places: Places, top: int) -> Tensor:
        """Where the keys lie that new tokens see, as `choose_keys` says it. low: the latent of queries, float32."""
        if self.in_norm_D is not None and self.in_bias_D is not None:
            low_TR = ops.layernorm(low_TR, self.in_norm_D, self.in_bias_D, self.eps)
        q_TJe = ops.linear(low_TR, self.q).view(len(low_TR), self.heads, -1)
        if self.by_logs is not None:
            self.by_logs.scale_(q_TJe, places.positions_T)
        if self.cos_Pr.shape[1]:
            ops.rotate_(q_TJe, self.cos_Pr, self.sin_Pr, places.positions_T)
        batch = places.tables_SM, places.starts_S1, places.contexts_S
        weights_TJ = ops.linear(h_TD, self.weights)
        if self.pools is not None:
            n, (P, _, page, F) = self.pools.size, self.keys_P1Be.shape
            halves = self.keys_P1Be.view(P, 1, 2 * page, F // 2)  # a row's key, then what it was weighted by
            runs_TO = ops.choose_entries(q_TJe, weights_TJ, halves, *batch, (top - n + 1) // n, n, page)
            return seen_keys(runs_TO, places, page, top, n)
        return ops.choose_keys(q_TJe, weights_TJ, self.keys_P1Be, *batch, top)


def as_pages(rows_P1Bl: Rows) -> Tensor:
    """A cache as one of pages that hold one token each: a slot is then a page."""
    assert isinstance(rows_P1Bl, Tensor), "chosen keys in q8_0, whose scales are a page's"
    P, _, B, width = rows_P1Bl.shape
    return rows_P1Bl.view(P * B, 1, 1, width)


def as_sequences(slots_TO: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tables, starts and contexts of a batch in which each token is a sequence that ends with it, of those keys alone
    that it sees."""
    T, device = len(slots_TO), slots_TO.device
    starts = torch.arange(T + 1, dtype=torch.int32, device=device)
    return slots_TO, starts, (slots_TO >= 0).sum(1, dtype=torch.int32)
