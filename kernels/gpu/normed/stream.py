"""A residual stream as the kernels of this folder read it: with an update that is added, and its norm's weights.

No program may write what another one still reads, so x with the update goes to new memory, each program a share of it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import launch

BLOCK = 1024  # of a row at a time, for its sum of squares


@triton.jit
def summed(x_ptr, y_ptr, factor, at, ok, ADD: tl.constexpr):
    """x with the update, where they are."""
    x = tl.load(x_ptr + at, mask=ok, other=0.0)
    if ADD:
        x += tl.load(y_ptr + at, mask=ok, other=0.0) * factor
    return x


@triton.jit
def scale_of(x_ptr, y_ptr, factor, size, eps, ADD: tl.constexpr, BLOCK: tl.constexpr):
    """1 / sqrt(mean(x^2) + eps)."""
    squares = tl.zeros([BLOCK], tl.float32)
    for first in range(0, size, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = summed(x_ptr, y_ptr, factor, at, at < size, ADD)
        squares += x * x
    return tl.rsqrt(tl.sum(squares, axis=0) / size + eps)


@triton.jit
def share_of(number, programs, size, SHARE: tl.constexpr):
    """Which numbers of a row a program writes, [SHARE], and whether they are there."""
    each = tl.cdiv(size, programs)
    inside = tl.arange(0, SHARE)
    at = number * each + inside
    return at, (inside < each) & (at < size)


class Stream(NamedTuple):
    """x [T, D], factor * update is to be added, and then it is normed."""

    x_TD: Tensor
    update_TD: Tensor | None
    factor: float
    norm_D: Tensor
    eps: float

    @property
    def pointers(self) -> tuple[Tensor, Tensor, Tensor]:
        """x, the update or what is not read, the norm's weights; checked."""
        (T, D), update = self.x_TD.shape, self.x_TD if self.update_TD is None else self.update_TD
        return (
            launch.check(self.x_TD, launch.F32, T, D), launch.check(update, launch.F32, T, D),
            launch.check(self.norm_D, launch.F32, D),
        )  # fmt: skip

    def after(self) -> Tensor:
        """Where x goes with its update: x itself without one."""
        return self.x_TD if self.update_TD is None else torch.empty_like(self.x_TD)

    def constants(self, programs: int) -> dict[str, int]:
        """Of a kernel in which so many programs share a token."""
        share = launch.pow2(launch.cdiv(self.x_TD.shape[1], programs))
        return dict(ADD=self.update_TD is not None, BLOCK=BLOCK, SHARE=share)
