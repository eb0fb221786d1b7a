"""Rotary embedding in place on a part of each head. Where keys are cached in the same launch: `attention/qkv.py`."""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from .. import launch
from ..kernel import kernel

HEADS = 4  # of a program


@kernel()
def _rotate(
    x_ptr, cos_ptr, sin_ptr, positions_ptr, x_stride, head_stride, heads, pairs,
    HEADS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    pair = tl.arange(0, PAIRS)[None, :]
    ok = (head < heads) & (pair < pairs)
    x = x_ptr + token * x_stride + head * head_stride + pair
    a, b = tl.load(x, mask=ok, other=0.0), tl.load(x + pairs, mask=ok, other=0.0)
    tl.debug_barrier()  # where a tile is small, several warps read the same values: before any is overwritten
    angle = tl.load(positions_ptr + token).to(tl.int64) * pairs + pair
    cos = tl.load(cos_ptr + angle, mask=pair < pairs, other=0.0)
    sin = tl.load(sin_ptr + angle, mask=pair < pairs, other=0.0)
    tl.store(x, a * cos - b * sin, mask=ok)
    tl.store(x + pairs, b * cos + a * sin, mask=ok)


def rotate_(x_TNd: Tensor, cos_Pr: Tensor, sin_Pr: Tensor, positions_T: Tensor) -> None:
    (T, N, d), (P, r), step = x_TNd.shape, cos_Pr.shape, x_TNd.stride()
    assert 2 * r <= d, f"{r} pairs in {d} values"
    assert x_TNd.dtype == launch.F32, f"{x_TNd.dtype}"
    assert step[2] == 1, f"strides {step} of {list(x_TNd.shape)}"
    for table in (cos_Pr, sin_Pr):
        launch.check(table, launch.F32, P, r)
    launch.check(positions_T, launch.I32, T)
    _rotate[(T, launch.cdiv(N, HEADS))](
        x_TNd, cos_Pr, sin_Pr, positions_T, step[0], step[1], N, r, HEADS=HEADS, PAIRS=launch.pow2(r), num_warps=2
    )  # fmt: skip
