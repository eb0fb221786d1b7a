"""RMSNorm: of rows, of heads of a fused projection in place, and with the residual added first. One program a row."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .kernel import kernel


@triton.jit
def normalise(x, weight_ptr, at, ok, size, eps):
    """x / sqrt(mean(x^2) + eps) * weight of one row held in registers."""
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / size + eps)
    return x * scale * tl.load(weight_ptr + at, mask=ok, other=0.0)


@kernel()
def _rmsnorm(
    x_ptr, weight_ptr, out_ptr, token_rows, stride, size, eps, BLOCK: tl.constexpr
):  # fmt: skip
    """A token has `token_rows` rows side by side; `stride` is that of tokens, in x and in the result."""
    token = (tl.program_id(0) // token_rows).to(tl.int64)
    row = token * stride + tl.program_id(0) % token_rows * size
    at = tl.arange(0, BLOCK)
    ok = at < size
    x = tl.load(x_ptr + row + at, mask=ok, other=0.0)
    tl.store(out_ptr + row + at, normalise(x, weight_ptr, at, ok, size, eps), mask=ok)


@kernel()
def _add_rmsnorm(x_ptr, y_ptr, weight_ptr, out_ptr, size, eps, factor, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * size
    at = tl.arange(0, BLOCK)
    ok = at < size
    y = tl.load(y_ptr + row + at, mask=ok, other=0.0)
    x = tl.load(x_ptr + row + at, mask=ok, other=0.0) + y * factor
    tl.store(x_ptr + row + at, x, mask=ok)
    tl.store(out_ptr + row + at, normalise(x, weight_ptr, at, ok, size, eps), mask=ok)


@lru_cache
def _warps(size: int) -> int:
    """A row of 2048 values is 8 for each of 256 threads."""
    return min(16, max(1, launch.pow2(size) // 256))


def rmsnorm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    D = x_TD.shape[-1]
    launch.check(x_TD, launch.F32, *x_TD.shape)
    launch.check(weight_D, launch.F32, D)
    out, rows = torch.empty_like(x_TD, device=weight_D.device), x_TD.numel() // D  # x may lie in the host's memory
    _rmsnorm[(rows,)](x_TD, weight_D, out, 1, D, D, eps, BLOCK=launch.pow2(D), num_warps=_warps(D))
    return out


def norm_rows_(x_TNd: Tensor, weight: Tensor, eps: float) -> None:
    """Norms heads [T, N, d] in place, as rows of the weight's length: some or all heads of a token."""
    (T, N, d), size = x_TNd.shape, len(weight)
    assert N * d % size == 0, f"a norm of {size} for {N} heads of {d}"
    rows, stride = N * d // size, launch.heads(x_TNd)
    launch.check(weight, launch.F32, size)
    _rmsnorm[(T * rows,)](
        x_TNd, weight, x_TNd, rows, stride, size, eps, BLOCK=launch.pow2(size), num_warps=_warps(size)
    )  # fmt: skip


def add_rmsnorm_(x_TD: Tensor, y_TD: Tensor, weight_D: Tensor, eps: float, scale: float = 1.0) -> Tensor:
    T, D = x_TD.shape
    for rows in (x_TD, y_TD):
        launch.check(rows, launch.F32, T, D)
    launch.check(weight_D, launch.F32, D)
    out = torch.empty_like(x_TD)
    _add_rmsnorm[(T,)](x_TD, y_TD, weight_D, out, D, eps, scale, BLOCK=launch.pow2(D), num_warps=_warps(D))
    return out
