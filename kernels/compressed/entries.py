"""Entries that stand for several tokens each: how they are made, where they lie, what is kept of one that is not whole.

Every `rate` tokens are a block. An entry is the mean of what its block's tokens give, weighted number by number: the
weights are a softmax over the tokens. With two series of numbers the tokens of the block before come in too, with
their first series, those of the block itself with their second. What has been seen of a block so far is three numbers
for each that it will have, whatever the rate: the largest logarithm of a weight, the sum of weights and the weighted
sum, both divided by the largest weight. Tokens are taken in one by one, so that an entry is the same however a
sequence is cut into passes.

Letters besides those of `reference.py`: S series, e numbers of an entry, n its rate, W blocks of a run of tokens, E
entries, B' entries that a page has room for.
Source: DeepSeek-V4 (sections 2.3.1 and 2.3.2); the running softmax is that of Milakov and Gimelshein (arXiv
1805.02867).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ..decoder_layer import Places
from ..packed import Matrix

if TYPE_CHECKING:
    from .. import Ops


@dataclass(frozen=True, kw_only=True)
class Entries:
    """Weights and cache. made, weighed: [S e, D]; places: what is added to the logarithms of weights by place in a
    block, float32 [n, S e]. state: float32, by slot. page: tokens of a page of the cache."""

    made: Matrix
    weighed: Matrix
    places_nC: Tensor
    norm_e: Tensor  # float32
    eps: float
    cos_Pr: Tensor
    sin_Pr: Tensor
    rows_P1Be: Tensor  # [P, 1, B', e]
    state_LS3e: Tensor
    page: int

    @property
    def rate(self) -> int:
        """Tokens of a block."""
        return len(self.places_nC)

    def keep(self, ops: Ops, h_TD: Tensor, places: Places) -> None:
        """Takes new tokens in: writes the entries that become whole into the cache."""
        made_TC, weighed_TC = ops.linear(h_TD, self.made), ops.linear(h_TD, self.weighed)
        weights = self.places_nC, self.norm_e, self.eps, self.cos_Pr, self.sin_Pr
        cache = self.rows_P1Be, self.state_LS3e, self.page
        assert places.states_S is not None, "a pass without slots of states"
        if not places.pieces:
            batch = places.states_S, places.starts_S1, places.contexts_S
            ops.fold_entries_(made_TC, weighed_TC, *weights, *cache, places.slots_T, *batch)
        for piece in places.pieces:
            own = slice(piece.first, piece.last)
            ops.fold_entries_(made_TC[own], weighed_TC[own], *weights, *cache, places.slots_T[own], *piece.tensors)
            if piece.keep is not None:
                self.state_LS3e[piece.keep] = self.state_LS3e[piece.slot]

    def slots(self, numbers: Tensor, tables: Tensor) -> Tensor:
        """Where in the cache entries of these numbers lie, int64 [t, E]; tables: of the pages of their sequences, by
        token: int32 [t, M]. Negative numbers stand for any."""
        lasts = (numbers.clamp(min=0).long() + 1) * self.rate - 1
        pages = tables.gather(1, (lasts // self.page).clamp(max=tables.shape[1] - 1)).long()
        return pages * self.rows_P1Be.shape[2] + lasts % self.page // self.rate

    def of(self, numbers: Tensor, table_M: Tensor) -> Tensor:
        """These entries of a sequence with these pages, as the cache has them: [E, e]; numbers: int64 [E]."""
        return self.rows_P1Be.flatten(0, 2)[self.slots(numbers.view(1, -1), table_M.view(1, -1))[0]]
