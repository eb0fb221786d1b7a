"""Queries that are multiplied, head by head, by a learned weight of the logarithm of their position plus a bias."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ByLogs:
    """weight and bias, float32 [N]. Source: Scalable-Softmax (arXiv 2501.19399)."""

    weight_N: Tensor
    bias_N: Tensor

    def scale_(self, x_TNd: Tensor, positions_T: Tensor) -> None:
        """x[t, n] *= weight[n] * ln(position[t] + 1) + bias[n] in place, float32; positions int32 [T]."""
        logs_T1 = (positions_T + 1).float().log().unsqueeze(1)
        x_TNd.mul_((logs_T1 * self.weight_N + self.bias_N).unsqueeze(2))
