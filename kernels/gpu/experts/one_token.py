"""Experts of one token in formats that `few_tokens.py` is not for: float32 arithmetic on weights that are read once, 16
bytes a load.

    _gate_up   h[k, f] = gated(gate_k[f] . x, up_k[f] . x)        program: one choice, ROWS / 2 values; gate and up rows
                                                                   of one format alternate, so that both sums end in
                                                                   one thread, those of two are one after the other
    _down      y[r] = sum_k weight[k] * (down_k[r] . h[k])         program: ROWS rows of y. The rows of all k choices
                                                                   count as one long row, so that short ones (432
                                                                   bytes at width 768 in q4_0) still fill every load

Biases, where a bank has them, are added to the three products; they lie behind the weights of an expert.

A choice of expert -1 is another bank's: its rows are masked, h is 0, and nothing of this bank is read for it. Where
choices are numbered as in the model, a table has their numbers in the bank.
No program waits for another and nothing is added to memory twice: the order of sums is fixed.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .. import launch
from ..cores.constants import about, runs_of
from ..cores.few import granule_dots, row_dots
from ..kernel import kernel
from ..pointwise import gated
from .blocks import Blocks, Part

UP_ROWS, DOWN_ROWS = 8, 4  # of a program


@triton.jit
def number(ids_ptr, local_ptr, ok, LOCAL: tl.constexpr):
    """Numbers of experts in a bank, int64: the ids, or what these stand for; -1 where there is none."""
    expert = tl.load(ids_ptr, mask=ok, other=-1)
    if LOCAL:
        expert = tl.load(local_ptr + expert, mask=expert >= 0, other=-1)
    return expert.to(tl.int64)


@kernel()
def _gate_up(
    x_ptr, ids_ptr, local_ptr, w_ptr, s_ptr, up_w_ptr, up_s_ptr, bias_ptr, h_ptr, width, hidden, stride, block,
    up_stride, up_block, up, bias_step,
    WIDTH: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr, UP_WIDTH: tl.constexpr, UP_WHOLE: tl.constexpr,
    UP_FORMAT: tl.constexpr, BIASED: tl.constexpr, ALPHA: tl.constexpr, OFFSET: tl.constexpr, LIMIT: tl.constexpr,
    CUBIC: tl.constexpr, LATE: tl.constexpr, LOCAL: tl.constexpr,
    ROWS: tl.constexpr, GRANULES: tl.constexpr,
):  # fmt: skip
    choice = tl.program_id(1)
    expert = number(ids_ptr + choice, local_ptr, True, LOCAL)
    there = tl.maximum(expert, 0)
    at = tl.program_id(0) * (ROWS // 2) + tl.arange(0, ROWS // 2)
    if FORMAT == UP_FORMAT:
        row = tl.arange(0, ROWS)
        f = tl.program_id(0) * (ROWS // 2) + row // 2
        rows, ok = there * block + (row % 2) * up + f * stride, (f < width) & (expert >= 0)
        sums = row_dots(x_ptr, w_ptr, s_ptr, rows, ok, hidden, WIDTH, WHOLE, FORMAT, ROWS, GRANULES)
        g, u = tl.split(tl.reshape(sums, [ROWS // 2, 2]))
    else:
        ok = (at < width) & (expert >= 0)
        rows, up_rows = there * block + at * stride, there * up_block + at * up_stride
        g = row_dots(x_ptr, w_ptr, s_ptr, rows, ok, hidden, WIDTH, WHOLE, FORMAT, ROWS // 2, GRANULES)
        u = row_dots(x_ptr, up_w_ptr, up_s_ptr, up_rows, ok, hidden, UP_WIDTH, UP_WHOLE, UP_FORMAT, ROWS // 2, GRANULES)
    if BIASED:
        biases, mine = bias_ptr + there * bias_step + at, (at < width) & (expert >= 0)
        g += tl.load(biases, mask=mine, other=0.0)
        u += tl.load(biases + width, mask=mine, other=0.0)
    tl.store(h_ptr + choice * width + at, gated(g, u, ALPHA, OFFSET, LIMIT, CUBIC, LATE), mask=at < width)


@kernel()
def _down(
    h_ptr, ids_ptr, local_ptr, weights_ptr, w_ptr, s_ptr, bias_ptr, y_ptr, hidden, width, stride, block, bias_step,
    TOP_K: tl.constexpr, ROW_GRANULES: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr,
    BIASED: tl.constexpr, LOCAL: tl.constexpr, ROWS: tl.constexpr, GRANULES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    sums = tl.zeros([ROWS, GRANULES], tl.float32)
    for first in range(0, TOP_K * ROW_GRANULES, GRANULES):
        at = first + tl.arange(0, GRANULES)
        choice = at // ROW_GRANULES
        ok = choice < TOP_K
        expert = number(ids_ptr + choice, local_ptr, ok, LOCAL)
        ok = expert >= 0
        expert = tl.maximum(expert, 0)
        part = granule_dots(
            h_ptr, choice * width, w_ptr, s_ptr, expert[None, :] * block + row[:, None] * stride, at % ROW_GRANULES, ok,
            row < hidden, width, WIDTH, WHOLE, FORMAT, ROWS, GRANULES,
        )  # fmt: skip
        sums += part * tl.load(weights_ptr + choice, mask=ok, other=0.0)[None, :]
    y = tl.sum(sums, axis=1)
    if BIASED:
        for k in tl.static_range(TOP_K):
            expert = number(ids_ptr + k, local_ptr, True, LOCAL)
            mine = (row < hidden) & (expert >= 0)
            biases = bias_ptr + tl.maximum(expert, 0) * bias_step + 2 * width
            y += tl.load(weights_ptr + k) * tl.load(biases + row, mask=mine, other=0.0)
    tl.store(y_ptr + row, y, mask=row < hidden)


def _up_rows(gate: Part, up: Part) -> int:
    """Fewer where a granule has more to it than one factor: it would take all registers, and leave few programs."""
    is_simple = all(runs_of(part.name) == 1 and not about(part.name, "minimums") for part in (gate, up))
    return UP_ROWS if is_simple else UP_ROWS // 2


def experts_one(
    x_1D: Tensor, ids_1K: Tensor, weights_1K: Tensor, blocks: Blocks, out_1D: Tensor, local_E: Tensor | None
) -> None:
    """Writes the weighted sum of the chosen experts to `out`. local: what ids stand for, if not for themselves."""
    ids = ids_1K, ids_1K if local_E is None else local_E
    is_local = dict(LOCAL=local_E is not None)
    D, F, K = blocks.hidden, blocks.width, ids_1K.shape[1]
    gate, up, down, h_KF = blocks.gate, blocks.up, blocks.down, x_1D.new_empty(K, F)
    tile, more = launch.one_token(_up_rows(gate, up), gate.rows.granules), up.rows.granules
    _gate_up[(launch.cdiv(F, tile["ROWS"] // 2), K)](
        x_1D, *ids, gate.rows.words, gate.rows.scales, up.rows.words, up.rows.scales, blocks.biases, h_KF, F, D,
        gate.rows.stride, gate.size, up.rows.stride, up.size, blocks.offset, blocks.bias_step, **gate.rows.granules,
        FORMAT=gate.name, UP_WIDTH=more["WIDTH"], UP_WHOLE=more["WHOLE"], UP_FORMAT=up.name, **blocks.constants,
        **is_local, **tile,
    )  # fmt: skip
    tile, rows = launch.one_token(DOWN_ROWS, down.rows.granules), down.rows
    _down[(launch.cdiv(D, tile["ROWS"]),)](
        h_KF, *ids, weights_1K, rows.words, rows.scales, blocks.biases, out_1D, D, F, rows.stride, down.size,
        blocks.bias_step, TOP_K=K, ROW_GRANULES=launch.cdiv(F, rows.granules["WIDTH"]), **rows.granules,
        FORMAT=down.name, BIASED=blocks.constants["BIASED"], **is_local, **tile,
    )  # fmt: skip
