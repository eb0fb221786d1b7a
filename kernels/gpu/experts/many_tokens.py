"""Experts of many tokens: pairs grouped by expert, tiles of BLOCK_M pairs on tensor cores, the sum over k at the end.

    group       order, starts, tiles, owners                                     (`grouping.py`)
    _gate_up    h[m] = gated(gate x, up x)          for the m-th pair in the order; gate and up rows of one format
                                                    alternate, so that one product gives both and a thread holds the two
                                                    it multiplies; of two formats there are two products
    _down       z[pair] = weight[pair] * down h[m]   biases, where a bank has them, are added to all three products
    _combine    y[t] = z[t, 0] + z[t, 1] + ...      in this order, without choices of expert -1, which nobody computed

There are as many programs as multiprocessors hold at once (`launch.resident`), and each takes one tile after so many of
those that there are: how many that is, only the device knows. Tiles of an expert come one after the other, of them
those that read the same rows of weights: a matrix comes from memory once, and from the second cache for all that
follows. h and z are bf16 where products are: what crosses memory between two products is halved, and each of a token's
summands is rounded once more, as h is.

Where an expert has many tokens, unpacking its weights anew for every tile costs more than the products. They are
unpacked to bf16 once then (`unpacking.py`), in groups of experts that fit a buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...formats import Format
from ...scratch import unpacks
from .. import launch
from ..cores.many import multiply
from ..kernel import kernel
from ..linear import tile_of
from ..pointwise import gated
from .blocks import Blocks
from .grouping import Groups, group, most_tiles
from .unpacking import PLAIN, Run, unpacked


@triton.jit
def tile_at(number, blocks, starts_ptr, tiles_ptr, owners_ptr, BLOCK_M: tl.constexpr):
    """Tile `number` of all, of matrices of so many blocks of rows: its expert, its block of rows, the first of its
    pairs in the order, and where the expert's end."""
    expert = tl.load(owners_ptr + number // blocks)
    first = tl.load(tiles_ptr + expert)
    inside, tiles = number - first * blocks, tl.load(tiles_ptr + expert + 1) - first
    begin = tl.load(starts_ptr + expert) + inside % tiles * BLOCK_M
    return expert, inside // tiles, begin, tl.load(starts_ptr + expert + 1)


@kernel("begin", "end")
def _gate_up(
    x_ptr, order_ptr, starts_ptr, tiles_ptr, owners_ptr, w_ptr, s_ptr, up_w_ptr, up_s_ptr, bias_ptr, h_ptr, begin, end,
    width, hidden, stride, block, up_stride, up_block, up, bias_step,
    TOP_K: tl.constexpr, EVEN: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr, UP_WHOLE: tl.constexpr,
    UP_FORMAT: tl.constexpr, BIASED: tl.constexpr, ALPHA: tl.constexpr, OFFSET: tl.constexpr, LIMIT: tl.constexpr,
    CUBIC: tl.constexpr, LATE: tl.constexpr,
    PRODUCT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Of experts `begin` to `end`; weights are those from `begin` on."""
    HALF: tl.constexpr = BLOCK_N // 2
    blocks = tl.cdiv(width, HALF)
    first_tile, last_tile = tl.load(tiles_ptr + begin) * blocks, tl.load(tiles_ptr + end) * blocks
    for number in range(first_tile + tl.program_id(0), last_tile, tl.num_programs(0)):
        expert, part, first, last = tile_at(number, blocks, starts_ptr, tiles_ptr, owners_ptr, BLOCK_M)
        here = (expert - begin).to(tl.int64)
        place = first + tl.arange(0, BLOCK_M)
        ok = place < last
        token = (tl.load(order_ptr + place, mask=ok, other=0) // TOP_K).to(tl.int64)
        x = x_ptr + token * hidden
        at = part * HALF + tl.arange(0, HALF)
        if FORMAT == UP_FORMAT:
            row = tl.arange(0, BLOCK_N)
            f = part * HALF + row // 2
            there = here * block + (row % 2) * up + f * stride
            sums = multiply(
                x, ok, w_ptr, s_ptr, there, f < width, hidden, EVEN, WHOLE, FORMAT, BLOCK_M, BLOCK_N, BLOCK_K, PRODUCT
            )
            g, u = tl.split(tl.reshape(sums, [BLOCK_M, HALF, 2]))
        else:
            g = multiply(
                x, ok, w_ptr, s_ptr, here * block + at * stride, at < width, hidden, EVEN, WHOLE, FORMAT, BLOCK_M, HALF,
                BLOCK_K, PRODUCT,
            )  # fmt: skip
            u = multiply(
                x, ok, up_w_ptr, up_s_ptr, here * up_block + at * up_stride, at < width, hidden, EVEN, UP_WHOLE,
                UP_FORMAT, BLOCK_M, HALF, BLOCK_K, PRODUCT,
            )  # fmt: skip
        if BIASED:
            biases = bias_ptr + expert.to(tl.int64) * bias_step + at
            g += tl.load(biases, mask=at < width, other=0.0)[None, :]
            u += tl.load(biases + width, mask=at < width, other=0.0)[None, :]
        h = gated(g, u, ALPHA, OFFSET, LIMIT, CUBIC, LATE).to(h_ptr.dtype.element_ty)
        tl.store(h_ptr + place.to(tl.int64)[:, None] * width + at[None, :], h, mask=ok[:, None] & (at < width)[None, :])


@kernel("begin", "end")
def _down(
    h_ptr, order_ptr, starts_ptr, tiles_ptr, owners_ptr, weights_ptr, w_ptr, s_ptr, bias_ptr, z_ptr, begin, end,
    hidden, width, stride, block, bias_step,
    EVEN: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr, BIASED: tl.constexpr, PRODUCT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Of experts `begin` to `end`; weights are those from `begin` on."""
    blocks = tl.cdiv(hidden, BLOCK_N)
    first_tile, last_tile = tl.load(tiles_ptr + begin) * blocks, tl.load(tiles_ptr + end) * blocks
    for number in range(first_tile + tl.program_id(0), last_tile, tl.num_programs(0)):
        expert, part, first, last = tile_at(number, blocks, starts_ptr, tiles_ptr, owners_ptr, BLOCK_M)
        row = part * BLOCK_N + tl.arange(0, BLOCK_N)
        place = first + tl.arange(0, BLOCK_M)
        ok = place < last
        there = (expert - begin).to(tl.int64) * block + row * stride
        sums = multiply(
            h_ptr + place.to(tl.int64) * width, ok, w_ptr, s_ptr, there, row < hidden, width, EVEN, WHOLE, FORMAT,
            BLOCK_M, BLOCK_N, BLOCK_K, PRODUCT,
        )  # fmt: skip
        if BIASED:
            biases = bias_ptr + expert.to(tl.int64) * bias_step + 2 * width
            sums += tl.load(biases + row, mask=row < hidden, other=0.0)[None, :]
        pair = tl.load(order_ptr + place, mask=ok, other=0)
        z = (sums * tl.load(weights_ptr + pair, mask=ok, other=0.0)[:, None]).to(z_ptr.dtype.element_ty)
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
        y += tl.load(z_ptr + (token * TOP_K + k) * hidden + at, mask=mine, other=0.0).to(tl.float32)
    tl.store(y_ptr + token * hidden + at, y, mask=ok)


class Plan(NamedTuple):
    """How the products of a bank are computed: tiles of both, with the same BLOCK_M."""

    kind: launch.Product
    tile: dict[str, int]
    down_kind: launch.Product
    down_tile: dict[str, int]


def plan_of(formats: Sequence[Format], tokens: float) -> Plan:
    """Of gate, up and down, by how many tokens share an expert. Gate and up are one product, in float32 if either needs
    it."""
    gate, up, down = formats
    kind: launch.Product = "f32" if "f32" in map(launch.product_of, (gate, up)) else "bf16"
    last = launch.product_of(down)
    tile, down_tile = tile_of(tokens, kind, up if up.is_block else gate), tile_of(tokens, last, down)
    rows = min(tile["BLOCK_M"], down_tile["BLOCK_M"])
    return Plan(kind, _tile(tile, rows, up), last, _tile(down_tile, rows, down))


def _tile(tile: dict[str, int], rows: int, format: Format) -> dict[str, int]:
    """With so many rows of tokens. Large ones of plain weights are told to leave registers for a second program on a
    multiprocessor, which computes while the first one begins a tile or ends it."""
    more = {"maxnreg": 128} if tile["num_warps"] == 8 and not format.is_block else {}
    return tile | {"BLOCK_M": rows} | more


def experts_many(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, blocks: Blocks, out_TD: Tensor) -> None:
    """Writes the weighted sums of the tokens' experts to `out`."""
    (T, D), K, device = x_TD.shape, ids_TK.shape[1], x_TD.device
    tokens = T * K / blocks.among
    is_unpacked = blocks.is_packed and unpacks(T * K, blocks.among)
    plan = plan_of(PLAIN * 3 if is_unpacked else blocks.formats, tokens)
    groups = group(ids_TK, blocks.experts, plan.tile["BLOCK_M"])
    kind = torch.bfloat16 if plan.down_kind == "bf16" else launch.F32
    h = torch.empty(T * K, blocks.width, dtype=kind, device=device)
    z = torch.empty(T * K, D, dtype=kind, device=device)
    x = launch.operand(x_TD, plan.kind)
    for run in unpacked(blocks) if is_unpacked else [Run(0, blocks.experts, blocks)]:
        _up(x, groups, run, h, K, plan)
        _last(h, groups, weights_TK, run, z, plan)
    _combine[(T, launch.cdiv(D, 1024))](z, ids_TK, out_TD, D, TOP_K=K, BLOCK=1024)


def _programs(pairs: int, experts: int, blocks: int, tile: dict[str, int], device: torch.device) -> tuple[int]:
    """As many as there may be tiles, or as fit on the GPU at once."""
    return (min(most_tiles(pairs, experts, tile["BLOCK_M"]) * blocks, launch.resident(tile, device)),)


def _up(x: Tensor, groups: Groups, run: Run, h: Tensor, K: int, plan: Plan) -> None:
    begin, end, blocks = run
    gate, up, D, F, tile = blocks.gate, blocks.up, blocks.hidden, blocks.width, plan.tile
    _gate_up[_programs(len(h), end - begin, launch.cdiv(F, tile["BLOCK_N"] // 2), tile, h.device)](
        x, *groups, gate.rows.values, gate.rows.scales, up.rows.values, up.rows.scales, blocks.biases, h, begin, end,
        F, D, gate.rows.stride, gate.size, up.rows.stride, up.size, blocks.offset, blocks.bias_step,
        TOP_K=K, EVEN=D % tile["BLOCK_K"] == 0, WHOLE=gate.rows.whole, FORMAT=gate.name, UP_WHOLE=up.rows.whole,
        UP_FORMAT=up.name, **blocks.constants, PRODUCT=plan.kind, **tile,
    )  # fmt: skip


def _last(h: Tensor, groups: Groups, weights_TK: Tensor, run: Run, z: Tensor, plan: Plan) -> None:
    begin, end, blocks = run
    down, D, F, tile = blocks.down, blocks.hidden, blocks.width, plan.down_tile
    _down[_programs(len(h), end - begin, launch.cdiv(D, tile["BLOCK_N"]), tile, h.device)](
        h, *groups, weights_TK, down.rows.values, down.rows.scales, blocks.biases, z, begin, end, D, F,
        down.rows.stride, down.size, blocks.bias_step, EVEN=F % tile["BLOCK_K"] == 0, WHOLE=down.rows.whole,
        FORMAT=down.name, BIASED=blocks.constants["BIASED"], PRODUCT=plan.down_kind, **tile,
    )  # fmt: skip
