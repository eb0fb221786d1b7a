"""norm(x + factor * update) @ w.T + bias of one token: `add_rmsnorm_`, then `linear`, in one launch.

A product is multiplied by the norm's scale when its sum is there, so a program does not wait for the sum of squares
before it reads weights; it takes that of the whole row afterwards, which lies in the first cache by then.
"""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from ...packed import Stacked
from .. import launch
from ..cores.few import row_dots
from ..kernel import kernel
from ..linear import ROWS
from .stream import Stream, scale_of, share_of, summed


@kernel()
def _norm_linear(
    x_ptr, y_ptr, norm_ptr, w_ptr, s_ptr, bias_ptr, out_ptr, after_ptr, rows, cols, stride, eps, factor,
    BIAS: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr, ROWS: tl.constexpr,
    GRANULES: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr, SHARE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ok = row < rows
    at = row.to(tl.int64) * stride
    if ADD:
        y = row_dots((x_ptr, norm_ptr, y_ptr, factor), w_ptr, s_ptr, at, ok, cols, WIDTH, WHOLE, FORMAT, ROWS, GRANULES)
    else:
        y = row_dots((x_ptr, norm_ptr), w_ptr, s_ptr, at, ok, cols, WIDTH, WHOLE, FORMAT, ROWS, GRANULES)
    y *= scale_of(x_ptr, y_ptr, factor, cols, eps, ADD, BLOCK)
    if BIAS:
        y += tl.load(bias_ptr + row, mask=ok, other=0.0)
    tl.store(out_ptr + row, y, mask=ok)
    if ADD:
        mine, here = share_of(tl.program_id(0), tl.num_programs(0), cols, SHARE)
        tl.store(after_ptr + mine, summed(x_ptr, y_ptr, factor, mine, here, ADD), mask=here)


def norm_linear(stream: Stream, weights: Stacked, bias_R: Tensor | None) -> tuple[Tensor, Tensor]:
    """x after the update, which is new memory, and the products of all parts side by side, float32 [1, R]."""
    (T, D), x_1D = stream.x_TD.shape, stream.after()
    assert T == 1, f"{T} tokens"
    y_1R, at = stream.x_TD.new_empty(1, sum(part.rows for part in weights.parts)), 0
    for part in weights.parts:
        assert part.cols == D, f"{D} values, {part.cols} columns"
        w, here = launch.packed(part), slice(at, at + part.rows)
        one = launch.one_token(ROWS, w.granules)
        bias, programs = y_1R if bias_R is None else bias_R[here], launch.cdiv(part.rows, one["ROWS"])
        _norm_linear[(programs,)](
            *stream.pointers, w.words, w.scales, bias, y_1R[:, here], x_1D, part.rows, D, w.stride, stream.eps,
            stream.factor, BIAS=bias_R is not None, **w.granules, FORMAT=part.format.name, **one,
            **stream.constants(programs),
        )  # fmt: skip
        at += part.rows
    return x_1D, y_1R
