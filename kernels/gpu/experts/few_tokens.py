"""Experts of 1 to 16 tokens, on tensor cores (`cores/skinny`): each chosen expert is read once, in two launches.

    _gate_up_few   h[pair] = gated(gate x, up x)        rows of gate and up of one format are one product's
    _down_few      z[pair] = weight[pair] * down h      then y[t] = z[t, 0] + z[t, 1] + ... by whoever arrives last
                                                        of a block of rows, in this order

    pair = token * K + choice, as elsewhere

A program's second coordinate is a pair. The first pair of an expert does the work for all tokens that chose it, the
others end at once: which tokens these are it sees from the ids, a few hundred numbers, so nothing is sorted before. A
token's experts differ from each other. A choice of expert -1 is another bank's: nobody computes it, nor is it added.
Where choices are numbered as in the model, a table has their numbers in the bank.
Biases, where a bank has them, are added to all three products.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .. import launch
from ..cores.arrivals import counters, is_last
from ..cores.skinny.multiply import multiply
from ..kernel import kernel
from ..linear import few_tile, for_few
from ..pointwise import gated
from .blocks import Blocks, Part
from .one_token import number


@triton.jit
def tokens_of(
    ids_ptr, local_ptr, tokens, TOP_K: tl.constexpr, SLOTS: tl.constexpr, LOCAL: tl.constexpr, TOKENS: tl.constexpr
):
    """Of the pair that a program has: its expert's number in the bank, whether it is the first one with it, which
    tokens have it, and with which pair: [TOKENS] each, 0 where they do not."""
    MANY: tl.constexpr = TOKENS * TOP_K
    pair = tl.program_id(1)
    chosen = tl.load(ids_ptr + pair)
    expert = number(ids_ptr + pair, local_ptr, True, LOCAL)
    token, choice = tl.arange(0, TOKENS)[:, None], tl.arange(0, SLOTS)[None, :]
    ok = (token < tokens) & (choice < TOP_K)
    at = token * TOP_K + choice
    mine = ok & (tl.load(ids_ptr + at, mask=ok, other=-1) == chosen)
    pairs = tl.min(tl.where(mine, at, MANY), axis=1)
    first = (expert >= 0) & (tl.min(pairs, axis=0) == pair)
    there = pairs < MANY
    return expert, first, there, tl.where(there, pairs, 0).to(tl.int64)


@kernel("tokens")
def _gate_up_few(
    x_ptr, ids_ptr, local_ptr, w_ptr, s_ptr, up_w_ptr, up_s_ptr, bias_ptr, h_ptr, tokens, width, hidden, stride, block,
    up_stride, up_block, up, bias_step,
    TOP_K: tl.constexpr, SLOTS: tl.constexpr, EVEN: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr,
    UP_WHOLE: tl.constexpr, UP_FORMAT: tl.constexpr, BIASED: tl.constexpr, ALPHA: tl.constexpr, OFFSET: tl.constexpr,
    LIMIT: tl.constexpr, CUBIC: tl.constexpr, LATE: tl.constexpr, LOCAL: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = BLOCK_N // 2
    expert, first, there, pairs = tokens_of(ids_ptr, local_ptr, tokens, TOP_K, SLOTS, LOCAL, TOKENS)
    if first:
        at, x_at = tl.program_id(0) * HALF + tl.arange(0, HALF), tl.arange(0, TOKENS).to(tl.int64) * hidden
        ok, last = at < width, tl.cdiv(hidden, 32)
        if FORMAT == UP_FORMAT:
            row = tl.arange(0, BLOCK_N)
            f = tl.program_id(0) * HALF + row % HALF
            rows = expert * block + row // HALF * up + f * stride
            both = multiply(
                x_ptr, x_at, there, w_ptr, s_ptr, rows, f < width, 0, last, hidden, EVEN, WHOLE, FORMAT, BLOCK_N, TOKENS
            )
            g, u = tl.split(tl.permute(tl.reshape(both, [2, HALF, TOKENS]), (1, 2, 0)))
        else:
            rows, up_rows = expert * block + at * stride, expert * up_block + at * up_stride
            g = multiply(x_ptr, x_at, there, w_ptr, s_ptr, rows, ok, 0, last, hidden, EVEN, WHOLE, FORMAT, HALF, TOKENS)
            u = multiply(
                x_ptr, x_at, there, up_w_ptr, up_s_ptr, up_rows, ok, 0, last, hidden, EVEN, UP_WHOLE, UP_FORMAT, HALF,
                TOKENS,
            )  # fmt: skip
        if BIASED:
            biases = bias_ptr + expert * bias_step + at
            g += tl.load(biases, mask=ok, other=0.0)[:, None]
            u += tl.load(biases + width, mask=ok, other=0.0)[:, None]
        into = h_ptr + pairs[None, :] * width + at[:, None]
        tl.store(into, gated(g, u, ALPHA, OFFSET, LIMIT, CUBIC, LATE), mask=ok[:, None] & there[None, :])


@kernel("tokens")
def _down_few(
    h_ptr, ids_ptr, local_ptr, weights_ptr, w_ptr, s_ptr, bias_ptr, z_ptr, y_ptr, count_ptr, tokens, hidden, width,
    stride, block, bias_step,
    TOP_K: tl.constexpr, SLOTS: tl.constexpr, EVEN: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr,
    BIASED: tl.constexpr, LOCAL: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    expert, first, there, pairs = tokens_of(ids_ptr, local_ptr, tokens, TOP_K, SLOTS, LOCAL, TOKENS)
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    ok = row < hidden
    if first:
        z = multiply(
            h_ptr, pairs * width, there, w_ptr, s_ptr, expert * block + row * stride, ok, 0, tl.cdiv(width, 32), width,
            EVEN, WHOLE, FORMAT, BLOCK_N, TOKENS,
        )  # fmt: skip
        if BIASED:
            z += tl.load(bias_ptr + expert * bias_step + 2 * width + row, mask=ok, other=0.0)[:, None]
        z *= tl.load(weights_ptr + pairs, mask=there, other=0.0)[None, :]
        tl.store(z_ptr + pairs[None, :] * hidden + row[:, None], z, mask=ok[:, None] & there[None, :])
    if is_last(count_ptr + tl.program_id(0), tl.num_programs(1)):
        token = tl.arange(0, TOKENS)
        y = tl.zeros([BLOCK_N, TOKENS], tl.float32)
        for k in tl.static_range(TOP_K):
            pair = token * TOP_K + k
            mine = (token < tokens) & (number(ids_ptr + pair, local_ptr, token < tokens, LOCAL) >= 0)
            from_ = z_ptr + pair.to(tl.int64)[None, :] * hidden + row[:, None]
            y += tl.load(from_, mask=ok[:, None] & mine[None, :], other=0.0, cache_modifier=".cg")
        into = y_ptr + token.to(tl.int64)[None, :] * hidden + row[:, None]
        tl.store(into, y, mask=ok[:, None] & (token < tokens)[None, :])


def takes_few(tokens: int, blocks: Blocks) -> bool:
    """Whether so many tokens go through these kernels: if those of all three parts would."""
    return all(for_few(tokens, part.format, part.rows) for part in (blocks.gate, blocks.up, blocks.down))


def experts_few(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, blocks: Blocks, out_TD: Tensor, local_E: Tensor | None
) -> None:
    """Writes the weighted sums of the tokens' experts to `out`. local: what ids stand for, if not for themselves."""
    ids = ids_TK, ids_TK if local_E is None else local_E
    (T, D), K, F = x_TD.shape, ids_TK.shape[1], blocks.width
    gate, up, down, h_PF, z_PD = blocks.gate, blocks.up, blocks.down, x_TD.new_empty(T * K, F), x_TD.new_empty(T * K, D)
    tile = _tile(T, (gate, up), 2 * F, T * K)
    choices = dict(TOP_K=K, SLOTS=launch.pow2(K), LOCAL=local_E is not None)
    _gate_up_few[(launch.cdiv(2 * F, tile["BLOCK_N"]), T * K)](
        x_TD, *ids, gate.rows.values, gate.rows.scales, up.rows.values, up.rows.scales, blocks.biases, h_PF, T, F, D,
        gate.rows.stride, gate.size, up.rows.stride, up.size, blocks.offset, blocks.bias_step, **choices,
        EVEN=D % tile["BLOCK_K"] == 0, WHOLE=gate.rows.whole, FORMAT=gate.name, UP_WHOLE=up.rows.whole,
        UP_FORMAT=up.name, **blocks.constants, **tile,
    )  # fmt: skip
    tile = _tile(T, (down,), D, T * K)
    programs = launch.cdiv(D, tile["BLOCK_N"])
    _down_few[(programs, T * K)](
        h_PF, *ids, weights_TK, down.rows.values, down.rows.scales, blocks.biases, z_PD, out_TD,
        counters(x_TD.device, "experts", programs), T, D, F, down.rows.stride, down.size, blocks.bias_step, **choices,
        EVEN=F % tile["BLOCK_K"] == 0, WHOLE=down.rows.whole, FORMAT=down.name, BIASED=blocks.constants["BIASED"],
        **tile,
    )  # fmt: skip


def _tile(tokens: int, parts: tuple[Part, ...], rows: int, pairs: int) -> dict[str, int]:
    """The tile that all parts fit into; half as high where there would be fewer programs than two a multiprocessor."""
    most = min(few_tile(tokens, part.format)["BLOCK_N"] for part in parts)
    device = parts[0].rows.values.device
    if most == 128 and launch.cdiv(rows, most) * pairs < 2 * launch.multiprocessors(device):
        most = 64
    return few_tile(tokens, parts[0].format, most)
