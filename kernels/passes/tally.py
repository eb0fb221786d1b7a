"""What the tokens of a pass chose, and where it is counted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Choice = tuple[Tensor, Tensor]  # of experts: ids int32 [T, K] and their weights float32 [T, K]


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Where `layers` says which experts were chosen. counts: grows by one for each choice; the first plane has those of
    prompts' tokens, the second those of the pass's first `decoding` tokens. ids, weights: the choices themselves, if
    they are wanted; rows of dense layers, and of tokens that did not go on, stay as they are."""

    counts_2LE: Tensor  # int64
    decoding: int = 0
    ids_LTK: Tensor | None = None  # int32
    weights_LTK: Tensor | None = None  # float32

    def take(self, layer: int, choice: Choice) -> None:
        """Takes in what a layer's tokens chose."""
        ids_TK, weights_TK = choice
        for plane, rows in ((0, ids_TK[self.decoding :]), (1, ids_TK[: self.decoding])):
            ids = rows.flatten().long()
            self.counts_2LE[plane, layer].scatter_add_(0, ids, torch.ones_like(ids))
        if self.ids_LTK is not None:
            self.ids_LTK[layer, : len(ids_TK)] = ids_TK
        if self.weights_LTK is not None:
            self.weights_LTK[layer, : len(ids_TK)] = weights_TK
