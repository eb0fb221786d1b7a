"""Experts of many tokens: pairs grouped by expert, tiles of BLOCK_M pairs on tensor cores, the sum over k at the end.

    group       order, starts                                              (`grouping.py`)
    _gate_up    h[m] = gated(gate x, up x)          for the m-th pair in the order; gate and up rows of one format
                                                    alternate, so that one product gives both and a thread holds the two
                                                    it multiplies; of two formats there are two products
    _down       z[pair] = weight[pair] * down h[m]   biases, where a bank has them, are added to all three products
    _combine    y[t] = z[t, 0] + z[t, 1] + ...      in this order, without choices of expert -1, which nobody computed

The grid knows shapes only: (experts * blocks of rows, LANES). A program takes every LANES-th block of its expert's
pairs, and ends at once where there are none. With up to BLOCK_M pairs an expert each weight is read once.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from .. import launch
from ..cores.many import multiply
from ..kernel import kernel
from ..linear import tile_of
from ..pointwise import gated
from .blocks import Blocks
from .grouping import group


@kernel()
def _gate_up(
    x_ptr, order_ptr, starts_ptr, w_ptr, s_ptr, up_w_ptr, up_s_ptr, bias_ptr, h_ptr, width, hidden, stride, block,
    up_stride, up_block, up, bias_step,
    TOP_K: tl.constexpr, EVEN: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr, UP_WHOLE: tl.constexpr,
    UP_FORMAT: tl.constexpr, BIASED: tl.constexpr, ALPHA: tl.constexpr, OFFSET: tl.constexpr, LIMIT: tl.constexpr,
    CUBIC: tl.constexpr, LATE: tl.constexpr,
    PRODUCT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = BLOCK_N // 2
    blocks = tl.cdiv(width, HALF)
    expert = tl.program_id(0) // blocks
    first = tl.program_id(0) % blocks * HALF
    row, at = tl.arange(0, BLOCK_N), first + tl.arange(0, HALF)
    f = first + row // 2
    there = expert.to(tl.int64) * block + (row % 2) * up + f * stride
    gate_rows, up_rows = expert.to(tl.int64) * block + at * stride, expert.to(tl.int64) * up_block + at * up_stride
    last = tl.load(starts_ptr + expert + 1)
    begin = tl.load(starts_ptr + expert) + tl.program_id(1) * BLOCK_M
    for m in range(begin, last, tl.num_programs(1) * BLOCK_M):
        place = m + tl.arange(0, BLOCK_M)
        ok = place < last
        token = (tl.load(order_ptr + place, mask=ok, other=0) // TOP_K).to(tl.int64)
        x = x_ptr + token * hidden
        if FORMAT == UP_FORMAT:
            sums = multiply(
                x, ok, w_ptr, s_ptr, there, f < width, hidden, EVEN, WHOLE, FORMAT, BLOCK_M, BLOCK_N, BLOCK_K, PRODUCT
            )
            g, u = tl.split(tl.reshape(sums, [BLOCK_M, HALF, 2]))
        else:
            g = multiply(
                x, ok, w_ptr, s_ptr, gate_rows, at < width, hidden, EVEN, WHOLE, FORMAT, BLOCK_M, HALF, BLOCK_K, PRODUCT
            )
            u = multiply(
                x, ok, up_w_ptr, up_s_ptr, up_rows, at < width, hidden, EVEN, UP_WHOLE, UP_FORMAT, BLOCK_M, HALF,
                BLOCK_K, PRODUCT,
            )  # fmt: skip
        if BIASED:
            biases = bias_ptr + expert.to(tl.int64) * bias_step + at
            g += tl.load(biases, mask=at < width, other=0.0)[None, :]
            u += tl.load(biases + width, mask=at < width, other=0.0)[None, :]
        h = gated(g, u, ALPHA, OFFSET, LIMIT, CUBIC, LATE).to(h_ptr.dtype.element_ty)
        tl.store(h_ptr + place.to(tl.int64)[:, None] * width + at[None, :], h, mask=ok[:, None] & (at < width)[None, :])


@kernel()
def _down(
    h_ptr, order_ptr, starts_ptr, weights_ptr, w_ptr, s_ptr, bias_ptr, z_ptr, hidden, width, stride, block, bias_step,
    EVEN: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr, BIASED: tl.constexpr, PRODUCT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
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
            h_ptr + place.to(tl.int64) * width, ok, w_ptr, s_ptr, there, row < hidden, width, EVEN, WHOLE, FORMAT,
            BLOCK_M, BLOCK_N, BLOCK_K, PRODUCT,
        )  # fmt: skip
        if BIASED:
            biases = bias_ptr + expert.to(tl.int64) * bias_step + 2 * width
            sums += tl.load(biases + row, mask=row < hidden, other=0.0)[None, :]
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
    (T, D), K, E, F, device = x_TD.shape, ids_TK.shape[1], blocks.experts, blocks.width, x_TD.device
    lanes = launch.cdiv(T * K, E * 128)
    order, starts = group(ids_TK, E)
    last = launch.product_of(blocks.down.format)
    h = torch.empty(T * K, F, dtype=torch.bfloat16 if last == "bf16" else launch.F32, device=device)
    _up(x_TD, order, starts, blocks, h, K, lanes)
    down, tile = blocks.down, tile_of(T * K / E, last, blocks.down.format)
    z = torch.empty(T * K, D, dtype=launch.F32, device=device)
    _down[(E * launch.cdiv(D, tile["BLOCK_N"]), lanes)](
        h, order, starts, weights_TK, down.rows.values, down.rows.scales, blocks.biases, z, D, F, down.rows.stride,
        down.size, blocks.bias_step, EVEN=F % tile["BLOCK_K"] == 0, WHOLE=down.rows.whole, FORMAT=down.name,
        BIASED=blocks.constants["BIASED"], PRODUCT=last, **tile,
    )  # fmt: skip
    _combine[(T, launch.cdiv(D, 1024))](z, ids_TK, out_TD, D, TOP_K=K, BLOCK=1024)


def _up(x_TD: Tensor, order: Tensor, starts: Tensor, blocks: Blocks, h: Tensor, K: int, lanes: int) -> None:
    """Writes what `down` is multiplied with: in float32 products if gate or up need them."""
    gate, up, D, F, E = blocks.gate, blocks.up, blocks.hidden, blocks.width, blocks.experts
    kinds = {launch.product_of(part.format) for part in (gate, up)}
    kind: launch.Product = "f32" if "f32" in kinds else "bf16"
    tile = tile_of(len(order) / E, kind, up.format if up.format.is_block else gate.format)
    _gate_up[(E * launch.cdiv(F, tile["BLOCK_N"] // 2), lanes)](
        launch.operand(x_TD, kind), order, starts, gate.rows.values, gate.rows.scales, up.rows.values, up.rows.scales,
        blocks.biases, h, F, D, gate.rows.stride, gate.size, up.rows.stride, up.size, blocks.offset, blocks.bias_step,
        TOP_K=K, EVEN=D % tile["BLOCK_K"] == 0, WHOLE=gate.rows.whole, FORMAT=gate.name, UP_WHOLE=up.rows.whole,
        UP_FORMAT=up.name, **blocks.constants, PRODUCT=kind, **tile,
    )  # fmt: skip
