"""The norms among the ops of the C++ kernels: RMSNorm and LayerNorm, each alone and behind a sum."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _cpu
from ..context import Context
from .prepare import F32, at


class NormOps:
    """The ops in a context."""

    context: Context

    def rmsnorm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        D = x_TD.shape[-1]
        out = torch.empty_like(x_TD)
        x, weight = at(x_TD, F32, *x_TD.shape), at(weight_D, F32, D)
        _cpu.rmsnorm(self.context.native, x, weight, out.data_ptr(), x_TD.numel() // D, D, eps)
        return out

    def add_rmsnorm_(self, x_TD: Tensor, y_TD: Tensor, weight_D: Tensor, eps: float, scale: float = 1.0) -> Tensor:
        T, D = x_TD.shape
        out = torch.empty_like(x_TD)
        rows = at(x_TD, F32, T, D), at(y_TD, F32, T, D), at(weight_D, F32, D)
        _cpu.add_rmsnorm(self.context.native, *rows, out.data_ptr(), T, D, eps=eps, scale=scale)
        return out

    def layernorm(self, x_TD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
        D = x_TD.shape[-1]
        out = torch.empty_like(x_TD)
        rows = at(x_TD, F32, *x_TD.shape), at(weight_D, F32, D), at(bias_D, F32, D)
        _cpu.layernorm(self.context.native, *rows, out.data_ptr(), x_TD.numel() // D, D, eps)
        return out

    def add_layernorm_(
        self, x_TD: Tensor, y_TD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, scale: float = 1.0
    ) -> Tensor:
        T, D = x_TD.shape
        out = torch.empty_like(x_TD)
        rows = at(x_TD, F32, T, D), at(y_TD, F32, T, D), at(weight_D, F32, D), at(bias_D, F32, D)
        _cpu.add_layernorm(self.context.native, *rows, out.data_ptr(), T, D, eps=eps, scale=scale)
        return out
