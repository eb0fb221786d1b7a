"""Writes a layer's job into a slot of the mailbox: one launch in place of three copies and what prepares them.

The slot is memory of the host that is registered with the driver, so a program stores over the link. Stores of a kernel
are there before anything that the stream does next, the flag that posts the job included; no fence is needed here.
"""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from . import launch
from .kernel import kernel

BLOCK = 1024


@kernel()
def _pack(
    x_ptr, ids_ptr, weights_ptr, local_ptr, padding_ptr, to_x_ptr, to_ids_ptr, to_weights_ptr, D, K,
    LOCAL: tl.constexpr, BLOCK: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """A part of one token's x; the first part also brings its ids and weights."""
    token, part = tl.program_id(0), tl.program_id(1)
    at = part * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + token * D + at, mask=at < D, other=0.0)
    tl.store(to_x_ptr + token * D + at, x, mask=at < D)
    if part == 0:
        k = tl.arange(0, PAIRS)
        ids = tl.load(ids_ptr + token * K + k, mask=k < K, other=0)
        if LOCAL:
            ids = tl.load(local_ptr + ids, mask=k < K, other=0)
        ids = tl.where(tl.load(padding_ptr + token) != 0, -1, ids)
        tl.store(to_ids_ptr + token * K + k, ids, mask=k < K)
        weights = tl.load(weights_ptr + token * K + k, mask=k < K, other=0.0)
        tl.store(to_weights_ptr + token * K + k, weights, mask=k < K)


def pack(
    to: tuple[Tensor, Tensor, Tensor],
    x_TD: Tensor,
    ids_TK: Tensor,
    weights_TK: Tensor,
    local_E: Tensor | None,
    padding_T: Tensor,
) -> None:
    """Fills `to` (ids int32, weights float32 [T, K], x float32 or bfloat16 [T, D]) as `copy_job` in
    `engine/cuda_graphs/mailbox_experts.py` does: ids through `local_E`, if there is one, and -1 for padding."""
    (T, D), K = x_TD.shape, ids_TK.shape[1]
    to_ids, to_weights, to_x = to
    launch.check(x_TD, launch.F32, T, D)
    launch.check(to_x, to_x.dtype, T, D)
    for ids, weights in ((ids_TK, weights_TK), (to_ids, to_weights)):
        launch.check(ids, launch.I32, T, K)
        launch.check(weights, launch.F32, T, K)
    padding = launch.check(padding_T, padding_T.dtype, T).view(launch.U8)
    local = ids_TK if local_E is None else launch.check(local_E, launch.I32, len(local_E))
    _pack[(T, launch.cdiv(D, BLOCK))](
        x_TD, ids_TK, weights_TK, local, padding, to_x, to_ids, to_weights, D, K,
        LOCAL=local_E is not None, BLOCK=BLOCK, PAIRS=launch.pow2(K),
    )  # fmt: skip
