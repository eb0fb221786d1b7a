"""The products of a layer's experts, row by row as they are known, and their sum in the order of choices.

    rows[t, k] = expert ids[t, k] of x[t]          of a group of experts at a time, in any order
    y[t]       = sum_k weights[t, k] * rows[t, k]

With the C++ kernels y has the bits of one call of `experts` that finds all of them in one bank: an expert sees as many
tokens at a time, and the sum has the same order. So what is resident changes no text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ....kernels import Ops
from ....kernels.cpu import EXPERT_OUT_BYTES, CpuOps
from ....kernels.packed import ExpertBank

F32 = 4
SPARE = 16  # floats behind each row of what the C++ op keeps products in, by which it takes tokens in chunks


def nbytes(tokens: int, top_k: int, hidden: int) -> int:
    """RAM for a pass of so many tokens: the rows, and x and products of a group, which may be all."""
    return 3 * F32 * tokens * top_k * hidden


class Rows:
    """Of one layer: x float32 [tokens, hidden], ids int32 and weights float32 [tokens, choices]. experts: of the layer.
    on_input: experts take x times their weights, and what they give is added up as it is."""

    def __init__(
        self, ops: Ops, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, experts: int, on_input: bool = False
    ) -> None:
        self.ops, self.x_TD, (self.T, self.K) = ops, x_TD, ids_TK.shape
        ones_TK = torch.ones_like(weights_TK)
        self.taken_P, self.given_TK = (weights_TK.flatten(), ones_TK) if on_input else (ones_TK.flatten(), weights_TK)
        self.ids_P = ids_TK.flatten().long()
        self.rows_PD = torch.empty(self.T * self.K, x_TD.shape[1])
        self.experts, self.chosen = experts, ids_TK[0].tolist() if self.T == 1 else []
        self.most = max(1, EXPERT_OUT_BYTES // (self.K * (x_TD.shape[1] + SPARE) * F32))

    def add(self, experts: Sequence[int], places: Tensor, bank: ExpertBank) -> None:
        """Computes the rows of some experts, which lie in these places of a bank."""
        if self.T == 1:
            at_N = torch.tensor([self.chosen.index(expert) for expert in experts])
            x_ND, taken_N1 = self.x_TD.repeat(len(experts), 1), self.taken_P[at_N].unsqueeze(1)
            self.rows_PD[at_N] = self.ops.experts(x_ND, places.int().unsqueeze(1), taken_N1, bank)
            return
        local_E = torch.full((self.experts,), -1, dtype=torch.int32)
        local_E[torch.tensor(experts)] = places.int()
        local_P = local_E[self.ids_P]
        pairs_N = (local_P >= 0).nonzero().flatten()
        tokens_N = pairs_N // self.K
        for first in range(0, self.T, self.most):
            here_N = pairs_N[(tokens_N >= first) & (tokens_N < first + self.most)] if self.most < self.T else pairs_N
            ids_N1, taken_N1 = local_P[here_N].unsqueeze(1), self.taken_P[here_N].unsqueeze(1)
            if len(here_N):
                self.rows_PD[here_N] = self.ops.experts(self.x_TD[here_N // self.K], ids_N1, taken_N1, bank)

    def sum(self) -> Tensor:
        """float32 [tokens, hidden]."""
        rows_TKD, weights_TK = self.rows_PD.view(self.T, self.K, -1), self.given_TK
        if isinstance(self.ops, CpuOps):
            return self.ops.weighted_rows(rows_TKD, weights_TK)
        y_TD = torch.zeros(self.T, rows_TKD.shape[2])
        for k in range(self.K):
            y_TD += weights_TK[:, k, None] * rows_TKD[:, k]
        return y_TD
