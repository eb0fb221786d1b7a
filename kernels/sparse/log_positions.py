"""Queries that are multiplied, head by head, by a learned weight of the logarithm of their position plus a bias."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class ByLogs:
    """weight and bias, float32 [N]. Source: Scalable-Softmax (arXiv 2501.19399)."""

    weight_N: Tensor
    bias_N: Tensor

    def scale_(self, x_TNd: Tensor, positions_T: Tensor) -> None:
        """x[t, n] *= weight[n] * ln(position[t] + 1) + bias[n] in place, float32; positions int32 [T]."""
        longest = int(positions_T.max()) + 1
        logs_T1 = _logs(1 << longest.bit_length())[positions_T.long()].unsqueeze(1)
        x_TNd.mul_((logs_T1 * self.weight_N + self.bias_N).unsqueeze(2))


@cache
def _logs(count: int) -> Tensor:
    """ln(p + 1) of so many positions, float32. A table, because torch's logarithm goes by where in a tensor a number
    stands."""
    return torch.tensor([math.log(p + 1) for p in range(count)])
