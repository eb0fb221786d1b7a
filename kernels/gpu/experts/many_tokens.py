"""Experts of many tokens: pairs grouped by expert, tiles of BLOCK_M pairs on tensor cores, the sum over k at the end.

    group       order, starts                                              (`grouping.py`)
    _gate_up    h[m] = silu(gate x) * (up x)        for the m-th pair in the order; gate and up rows alternate, so that
                                                    one product gives both and a thread holds the two it multiplies
    _down       z[pair] = weight[pair] * down h[m]
    _combine    y[t] = z[t, 0] + z[t, 1] + ...      in this order, without choices of expert -1, which nobody computed

The grid knows shapes only: (experts * blocks of rows, LANES). A program takes every LANES-th block of its expert's
pairs, and ends at once where there are none. With up to BLOCK_M pairs an expert each weight is read once.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from .. import launch
from ..cores.products import multiply
from ..kernel import kernel
from ..linear import tile_of
from ..pointwise import silu
from .blocks import Blocks
from .grouping import group


@kernel()
def _gate_up(
    x_ptr, order_ptr, starts_ptr, w_ptr, s_ptr, h_ptr, width, hidden, elements, stride, up, block,
    TOP_K: tl.constexpr, EVEN: tl.constexpr, FORMAT: tl.constexpr, PRODUCT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(width, BLOCK_N // 2)
    expert = tl.program_id(0) // blocks
    first = tl.program_id(0) % blocks * (BLOCK_N // 2)
    row = tl.arange(0, BLOCK_N)
    f = first + row // 2
    there = expert.to(tl.int64) * block + (row % 2) * up + f * stride
    at = first + tl.arange(0, BLOCK_N // 2)
    last = tl.load(starts_ptr + expert + 1)
    begin = tl.load(starts_ptr + expert) + tl.program_id(1) * BLOCK_M
    for m in range(begin, last, tl.num_programs(1) * BLOCK_M):
        place = m + tl.arange(0, BLOCK_M)
        ok = place < last
        token = (tl.load(order_ptr + place, mask=ok, other=0) // TOP_K).to(tl.int64)
        sums = multiply(
            x_ptr + token * hidden, ok, w_ptr + there, s_ptr + there // 16 * 8, f < width, elements, EVEN, FORMAT,
            BLOCK_M, BLOCK_N, BLOCK_E, PRODUCT,
        )  # fmt: skip
        g, u = tl.split(tl.reshape(sums, [BLOCK_M, BLOCK_N // 2, 2]))
        h = (silu(g) * u).to(h_ptr.dtype.element_ty)
        tl.store(h_ptr + place.to(tl.int64)[:, None] * width + at[None, :], h, mask=ok[:, None] & (at < width)[None, :])


@kernel()
def _down(
    h_ptr, order_ptr, starts_ptr, weights_ptr, w_ptr, s_ptr, z_ptr, hidden, width, elements, stride, block,
    EVEN: tl.constexpr, FORMAT: tl.constexpr, PRODUCT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(hidden, BLOCK_N)
    expert = tl.program_id(0) // blocks
    row = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    there = expert.to(tl.int64) * block + row * stride
    last = tl.load(starts_ptr + expert + 1)
    begin = tl.load(starts_ptr + expert) + tl.program_id(1) * BLOCK_M
    for m in range(begin, last, tl.num_programs(1) * BLOCK_M):
        place = m + tl.arange(0, BLOCK_M)
        ok = place < last
        pair = tl.load(order_ptr + place, mask=ok, other=0)
        sums = multiply(
            h_ptr + place.to(tl.int64) * width, ok, w_ptr + there, s_ptr + there // 16 * 8, row < hidden, elements,
            EVEN, FORMAT, BLOCK_M, BLOCK_N, BLOCK_E, PRODUCT,
        )  # fmt: skip
        z = sums * tl.load(weights_ptr + pair, mask=ok, other=0.0)[:, None]
        into = z_ptr + pair.to(tl.int64)[:, None] * hidden + row[None, :]
        tl.store(into, z, mask=ok[:, None] & (row < hidden)[None, :])


@kernel()
def _combine(z_ptr, ids_ptr, y_ptr, hidden, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = at < hidden
    y = tl.zeros([BLOCK], tl.float32)
    for k in tl.static_range(TOP_K):
        mine = ok & (tl.load(ids_ptr + token * TOP_K + k) >= 0)
        y += tl.load(z_ptr + (token * TOP_K + k) * hidden + at, mask=mine, other=0.0)
    tl.store(y_ptr + token * hidden + at, y, mask=ok)


def experts_many(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, blocks: Blocks, out_TD: Tensor) -> None:
    """Writes the weighted sums of the tokens' experts to `out`."""
    (T, D), K, E, F = x_TD.shape, ids_TK.shape[1], blocks.experts, blocks.width
    up, down, form, device = blocks.up, blocks.down, blocks.format, x_TD.device
    kind = launch.product_of(form)
    tile, lanes = tile_of(T * K / E, kind, form), launch.cdiv(T * K, E * 128)
    order, starts = group(ids_TK, E)
    x = launch.operand(x_TD, kind)
    h = torch.empty(T * K, F, dtype=x.dtype, device=device)
    _gate_up[(E * launch.cdiv(F, tile["BLOCK_N"] // 2), lanes)](
        x, order, starts, up.values, up.scales, h, F, D, up.elements, up.stride,
        blocks.offset, blocks.size, TOP_K=K, EVEN=up.elements % tile["BLOCK_E"] == 0,
        FORMAT=form.name, PRODUCT=kind, **tile,
    )  # fmt: skip
    z = torch.empty(T * K, D, dtype=launch.F32, device=device)
    _down[(E * launch.cdiv(D, tile["BLOCK_N"]), lanes)](
        h, order, starts, weights_TK, down.values, down.scales, z, D, F, down.elements, down.stride,
        blocks.size, EVEN=down.elements % tile["BLOCK_E"] == 0, FORMAT=form.name, PRODUCT=kind, **tile,
    )  # fmt: skip
    _combine[(T, launch.cdiv(D, 1024))](z, ids_TK, out_TD, D, TOP_K=K, BLOCK=1024)
