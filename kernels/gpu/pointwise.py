"""A gated MLP's middle and the gated sum of the shared expert: values in, values out, nothing shared between them."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..recipes import SWIGLU, Activation
from . import launch
from .kernel import kernel

BLOCK = 1024


@triton.jit
def exp(x):
    """e^x of finite x to a few units in the last place, as 2^k e^r with r = x - k ln 2 in [0, ln 2); exp2(x * log2 e)
    alone is off by |x| units. ln 2 is taken in two parts, of which the first times k is exact (Cody and Waite)."""
    k = tl.floor(x * 1.4426950408889634)
    r = (x - k * 0.693359375) + k * 2.12194440e-4
    return tl.exp2(k) * tl.exp2(r * 1.4426950408889634)


@triton.jit
def silu(x):
    """x * sigmoid(x)."""
    return x / (1.0 + exp(-x))


@triton.jit
def at_most(x, LIMIT: tl.constexpr):
    """x or LIMIT, whichever is less; NaN stays what it is."""
    return tl.where(x > LIMIT, LIMIT, x)


@triton.jit
def gated(gate, up, ALPHA: tl.constexpr, OFFSET: tl.constexpr, LIMIT: tl.constexpr, CUBIC: tl.constexpr,
          LATE: tl.constexpr):  # fmt: skip
    """What `Activation` makes of a gate and an up; LIMIT 0: there is none."""
    if LIMIT > 0:
        up = -at_most(-at_most(up, LIMIT), LIMIT)
        if not LATE:
            gate = at_most(gate, LIMIT)
    if OFFSET != 0:
        up += OFFSET
    if CUBIC != 0:
        gate = gate / (1.0 + exp(-ALPHA * gate * (1.0 + CUBIC * gate * gate)))
    elif ALPHA == 1:
        gate = silu(gate)
    else:
        gate = gate / (1.0 + exp(-ALPHA * gate))
    if LATE:
        gate = at_most(gate, LIMIT)
    return gate * up


def constants_of(it: Activation) -> dict[str, float]:
    """An activation as constants of a kernel."""
    limit = 0.0 if math.isinf(it.limit) else it.limit
    return dict(ALPHA=it.alpha, OFFSET=it.offset, LIMIT=limit, CUBIC=it.cubic, LATE=it.late and limit > 0)


@kernel()
def _glu(
    x_ptr, out_ptr, width, ALPHA: tl.constexpr, OFFSET: tl.constexpr, LIMIT: tl.constexpr, CUBIC: tl.constexpr,
    LATE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = at < width
    gate = tl.load(x_ptr + row * 2 * width + at, mask=ok, other=0.0)
    up = tl.load(x_ptr + row * 2 * width + width + at, mask=ok, other=0.0)
    tl.store(out_ptr + row * width + at, gated(gate, up, ALPHA, OFFSET, LIMIT, CUBIC, LATE), mask=ok)


@kernel()
def _gated_add(y_ptr, z_ptr, gate_ptr, to_ptr, size, GATED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = at < size
    z = tl.load(z_ptr + row * size + at, mask=ok, other=0.0)
    if GATED:
        z = z / (1.0 + exp(tl.zeros([1], tl.float32) - tl.load(gate_ptr + row)))
    y = tl.load(y_ptr + row * size + at, mask=ok, other=0.0)
    tl.store(to_ptr + row * size + at, y + z, mask=ok)


def glu(gate_up_T2F: Tensor, activation: Activation = SWIGLU) -> Tensor:
    T, F = gate_up_T2F.shape[0], gate_up_T2F.shape[1] // 2
    launch.check(gate_up_T2F, launch.F32, T, 2 * F)
    out = torch.empty(T, F, dtype=launch.F32, device=gate_up_T2F.device)
    _glu[(T, launch.cdiv(F, BLOCK))](gate_up_T2F, out, F, **constants_of(activation), BLOCK=BLOCK)
    return out


def gated_add_(y_TD: Tensor, z_TD: Tensor, gate_T1: Tensor | None = None, to_TD: Tensor | None = None) -> None:
    (T, D), to_TD = y_TD.shape, y_TD if to_TD is None else to_TD
    for rows in (y_TD, z_TD, to_TD):
        launch.check(rows, launch.F32, T, D)
    gate = y_TD if gate_T1 is None else launch.check(gate_T1, launch.F32, T, 1)
    _gated_add[(T, launch.cdiv(D, BLOCK))](y_TD, z_TD, gate, to_TD, D, GATED=gate_T1 is not None, BLOCK=BLOCK)
