"""norm(x + factor * update), the router's logits of it and the choice of experts in one launch, for a few tokens.

A program has ROWS experts of one token, and a share of the normed row to write; the one that ends last chooses. What it
computes is what `router.py` does, from logits that differ in the order of their sums.
"""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from ...decoder_layer import Router
from ...packed import TORCH_DTYPES
from ...passes.tally import Choice
from .. import launch
from ..cores.arrivals import counters, is_last
from ..kernel import INTERPRETED, kernel
from ..linear import FEW
from ..router import CHOOSES, Choosing, choose, choosing
from .stream import Stream, share_of, summed

PROGRAMS = 256  # of a token


@kernel()
def _norm_route(
    x_ptr, y_ptr, norm_ptr, w_ptr, bias_ptr, choice_ptr, factors_ptr, after_ptr, h_ptr, logits_ptr, arrived_ptr,
    ids_ptr, weights_ptr, hidden, stride, eps, factor, experts, groups, scale,
    ADD: tl.constexpr, BIAS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, SHARE: tl.constexpr,
    TOP_K: tl.constexpr, SCORING: tl.constexpr, RENORMALISE: tl.constexpr, CHOICE: tl.constexpr, FACTORS: tl.constexpr,
    TOP: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr, TWO: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    token, row = tl.program_id(1).to(tl.int64), tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    x_ptr, y_ptr, row_ok = x_ptr + token * hidden, y_ptr + token * hidden, row < experts
    squares, sums = tl.zeros([BLOCK], tl.float32), tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(0, hidden, BLOCK):
        at = first + tl.arange(0, BLOCK)
        ok = at < hidden
        x = summed(x_ptr, y_ptr, factor, at, ok, ADD)
        squares += x * x
        places = row.to(tl.int64)[:, None] * stride + at[None, :]
        w = tl.load(w_ptr + places, mask=row_ok[:, None] & ok[None, :], other=0.0).to(tl.float32)
        sums += w * (x * tl.load(norm_ptr + at, mask=ok, other=0.0))[None, :]
    by = tl.rsqrt(tl.sum(squares, axis=0) / hidden + eps)
    logits = tl.sum(sums, axis=1) * by
    if BIAS:
        logits += tl.load(bias_ptr + row, mask=row_ok, other=0.0)
    tl.store(logits_ptr + token * experts + row, logits, mask=row_ok)
    mine, here = share_of(tl.program_id(0), tl.num_programs(0), hidden, SHARE)
    x = summed(x_ptr, y_ptr, factor, mine, here, ADD)
    if ADD:
        tl.store(after_ptr + token * hidden + mine, x, mask=here)
    tl.store(h_ptr + token * hidden + mine, x * by * tl.load(norm_ptr + mine, mask=here, other=0.0), mask=here)
    if is_last(arrived_ptr + token, tl.num_programs(0)):
        choose(
            logits_ptr, choice_ptr, factors_ptr, ids_ptr, weights_ptr, token, experts, groups, scale, TOP_K, SCORING,
            RENORMALISE, CHOICE, FACTORS, TOP, GROUPS, SIZE, TWO, SLOTS,
        )  # fmt: skip


def takes(tokens: int, router: Router) -> bool:
    """Whether `norm_route` has this router, for so many tokens."""
    is_plain = router.matrix.format.name in TORCH_DTYPES
    return tokens <= FEW and is_plain and router.scoring in CHOOSES and router.table_VK is None


def norm_route(stream: Stream, router: Router) -> tuple[Tensor, Tensor, Choice]:
    """x after the update, which is new memory, the normed rows, float32 [T, D], and what they choose."""
    (T, D), x_TD, w = stream.x_TD.shape, stream.after(), launch.packed(router.matrix)
    assert router.matrix.cols == D, f"{D} values, {router.matrix.cols} columns"
    how: Choosing = choosing(stream.x_TD, router)
    E, h_TD = router.matrix.rows, stream.x_TD.new_empty(T, D)
    bias = h_TD if router.bias_E is None else launch.check(router.bias_E, launch.F32, E)
    rows = launch.pow2(launch.cdiv(E, 8 if INTERPRETED else PROGRAMS))
    programs = launch.cdiv(E, rows)
    _norm_route[(programs, T)](
        *stream.pointers, w.values, bias, *how.added, x_TD, h_TD, stream.x_TD.new_empty(T, E),
        counters(h_TD.device, "route", T), *how.found, D, w.stride, stream.eps, stream.factor, *how.numbers,
        BIAS=router.bias_E is not None, ROWS=rows, **stream.constants(programs), **how.constants, num_warps=4,
    )  # fmt: skip
    return x_TD, h_TD, how.found
