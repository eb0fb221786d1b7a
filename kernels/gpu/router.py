"""Which experts a token goes to: the router's logits, then softmax and top k of a row, a program a token, in registers.

The k best are found one after another, each a maximum and the lowest id that has it. k is small (8) and a row is a few
hundred values, so this is less work than sorting it.
"""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from ..decoder_layer import Choice, Router
from . import launch
from .kernel import kernel
from .linear import linear


@kernel()
def _route(
    logits_ptr, ids_ptr, weights_ptr, experts,
    TOP_K: tl.constexpr, SOFTMAX: tl.constexpr, RENORMALISE: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    expert, slot = tl.arange(0, BLOCK), tl.arange(0, SLOTS)
    ok = expert < experts
    scores = tl.load(logits_ptr + token * experts + expert, mask=ok, other=float("-inf"))
    if SOFTMAX:
        powers = tl.exp(scores - tl.max(scores, axis=0))
        scores = tl.where(ok, powers / tl.sum(powers, axis=0), float("-inf"))
    ids = tl.zeros([SLOTS], tl.int32)
    weights = tl.full([SLOTS], float("-inf"), tl.float32)
    for k in tl.static_range(TOP_K):
        best = tl.max(scores, axis=0)
        chosen = tl.min(tl.where((scores == best) & ok, expert, BLOCK), axis=0)
        ids = tl.where(slot == k, chosen, ids)
        weights = tl.where(slot == k, best, weights)
        ok = ok & (expert != chosen)
        scores = tl.where(ok, scores, float("-inf"))
    if SOFTMAX:
        weights = tl.where(slot < TOP_K, weights, 0.0)
        if RENORMALISE:
            weights = weights / tl.sum(weights, axis=0)
    else:
        powers = tl.exp(weights - tl.max(weights, axis=0))
        weights = powers / tl.sum(powers, axis=0)
    tl.store(ids_ptr + token * TOP_K + slot, ids, mask=slot < TOP_K)
    tl.store(weights_ptr + token * TOP_K + slot, weights, mask=slot < TOP_K)


def route(x_TD: Tensor, router: Router) -> Choice:
    (T, E), top_k = (x_TD.shape[0], router.matrix.rows), router.top_k
    assert 1 <= top_k <= E, f"top {top_k} of {E}"
    logits_TE = linear(x_TD, router.matrix)
    ids, weights = x_TD.new_empty(T, top_k, dtype=launch.I32), x_TD.new_empty(T, top_k)
    _route[(T,)](
        logits_TE, ids, weights, E,
        TOP_K=top_k, SOFTMAX=router.scoring == "softmax", RENORMALISE=router.renormalise,
        BLOCK=launch.pow2(E), SLOTS=launch.pow2(top_k), num_warps=1,
    )  # fmt: skip
    return ids, weights
