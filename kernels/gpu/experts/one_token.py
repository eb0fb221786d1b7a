"""Experts of one token: a question of bytes, so float32 arithmetic on weights that are read once, 16 bytes a load.

    _gate_up   h[k, f] = silu(gate_k[f] . x) * (up_k[f] . x)      program: one choice, ROWS / 2 values; gate and up rows
                                                                   alternate, so that both sums end in one thread
    _down      y[r] = sum_k weight[k] * (down_k[r] . h[k])         program: ROWS rows of y. The rows of all k choices
                                                                   count as one long row, so that short ones (432
                                                                   bytes at width 768 in q4_0) still fill every load

A choice of expert -1 is another bank's: its rows are masked, h is 0, and nothing of this bank is read for it.
No program waits for another and nothing is added to memory twice: the order of sums is fixed.
"""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from .. import launch
from ..cores.products import granule_dots, row_dots
from ..kernel import kernel
from ..pointwise import silu
from .blocks import Blocks

UP, DOWN = launch.one_token(rows=8), launch.one_token(rows=4)


@kernel()
def _gate_up(
    x_ptr, ids_ptr, w_ptr, s_ptr, h_ptr, width, elements, stride, up, block,
    WIDTH: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr, ROWS: tl.constexpr, GRANULES: tl.constexpr,
):  # fmt: skip
    choice = tl.program_id(1)
    expert = tl.load(ids_ptr + choice).to(tl.int64)
    row = tl.arange(0, ROWS)
    f = tl.program_id(0) * (ROWS // 2) + row // 2
    at = tl.maximum(expert, 0) * block + (row % 2) * up + f * stride
    ok = (f < width) & (expert >= 0)
    sums = row_dots(x_ptr, w_ptr, s_ptr, at, ok, elements, WIDTH, WHOLE, FORMAT, ROWS, GRANULES)
    g, u = tl.split(tl.reshape(sums, [ROWS // 2, 2]))
    at = tl.program_id(0) * (ROWS // 2) + tl.arange(0, ROWS // 2)
    tl.store(h_ptr + choice * width + at, silu(g) * u, mask=at < width)


@kernel()
def _down(
    h_ptr, ids_ptr, weights_ptr, w_ptr, s_ptr, y_ptr, hidden, width, elements, stride, block,
    TOP_K: tl.constexpr, ROW_GRANULES: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr,
    ROWS: tl.constexpr, GRANULES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    sums = tl.zeros([ROWS, GRANULES], tl.float32)
    for first in range(0, TOP_K * ROW_GRANULES, GRANULES):
        at = first + tl.arange(0, GRANULES)
        choice = at // ROW_GRANULES
        ok = choice < TOP_K
        expert = tl.load(ids_ptr + choice, mask=ok, other=-1).to(tl.int64)
        ok = expert >= 0
        expert = tl.maximum(expert, 0)
        part = granule_dots(
            h_ptr, choice * width, w_ptr, s_ptr, expert[None, :] * block + row[:, None] * stride, at % ROW_GRANULES, ok,
            row < hidden, elements, WIDTH, WHOLE, FORMAT, ROWS, GRANULES,
        )  # fmt: skip
        sums += part * tl.load(weights_ptr + choice, mask=ok, other=0.0)[None, :]
    tl.store(y_ptr + row, tl.sum(sums, axis=1), mask=row < hidden)


def experts_one(x_1D: Tensor, ids_1K: Tensor, weights_1K: Tensor, blocks: Blocks, out_1D: Tensor) -> None:
    """Writes the weighted sum of the chosen experts to `out`."""
    D, F, K, up, down = blocks.hidden, blocks.width, ids_1K.shape[1], blocks.up, blocks.down
    name, h_KF = blocks.format.name, x_1D.new_empty(K, F)
    _gate_up[(launch.cdiv(F, UP["ROWS"] // 2), K)](
        x_1D, ids_1K, up.words, up.scales, h_KF, F, up.elements, up.stride, blocks.offset, blocks.size,
        **up.granules, FORMAT=name, **UP,
    )  # fmt: skip
    _down[(launch.cdiv(D, DOWN["ROWS"]),)](
        h_KF, ids_1K, weights_1K, down.words, down.scales, out_1D, D, F, down.elements, down.stride, blocks.size,
        TOP_K=K, ROW_GRANULES=launch.cdiv(down.elements, down.granules["WIDTH"]), **down.granules, FORMAT=name, **DOWN,
    )  # fmt: skip
