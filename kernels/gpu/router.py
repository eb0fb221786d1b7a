"""Which experts a token goes to: the router's logits, then scores, groups and top k of a row, a program a token, in
registers.

The k best are found one after another, each a maximum and the lowest id that has it. k is small (8) and a row is a few
hundred values, so this is less work than sorting it. A row is held as groups of a power of two of places, one after the
other; the places that no expert has are never chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from ..decoder_layer import Router
from ..passes.tally import Choice
from . import launch
from .kernel import kernel
from .linear import linear
from .pointwise import exp

CHOOSES = ("softmax", "sigmoid", "softmax_topk", "sigmoid_topk")  # scorings that `choose` has


@triton.jit
def scores_of(logits, ok, SCORING: tl.constexpr):
    """Each expert's score; -inf where there is none."""
    if SCORING == "softmax":
        powers = tl.exp(logits - tl.max(logits, axis=0))
        return tl.where(ok, powers / tl.sum(powers, axis=0), float("-inf"))
    if SCORING == "sigmoid":
        return tl.where(ok, 1.0 / (1.0 + exp(-tl.where(ok, logits, 0.0))), float("-inf"))
    return logits


@triton.jit
def first_best(values, ok, places, MOST: tl.constexpr):
    """The largest of the values that are ok, and the first place that has it. Of values that are no numbers the first
    one, so that there is always a place."""
    best = tl.max(tl.where(ok, values, float("-inf")), axis=0)
    first = tl.min(tl.where(ok & (values == best), places, MOST), axis=0)
    return best, tl.where(first == MOST, tl.min(tl.where(ok, places, MOST), axis=0), first)


@triton.jit
def group_scores(keys, GROUPS: tl.constexpr, SIZE: tl.constexpr, TWO: tl.constexpr):
    """The best key of each group, or the sum of its two best: [GROUPS]."""
    by_group = tl.reshape(keys, [GROUPS, SIZE])
    best = tl.max(by_group, axis=1)
    if TWO:
        member = tl.arange(0, SIZE)[None, :]
        first = tl.min(tl.where(by_group == best[:, None], member, SIZE), axis=1)
        best += tl.max(tl.where(member == first[:, None], float("-inf"), by_group), axis=1)
    return best


@triton.jit
def open_groups(keys, groups, TOP: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr, TWO: tl.constexpr):
    """Which places lie in the TOP best of the groups: [GROUPS * SIZE]."""
    group = tl.arange(0, GROUPS)
    best, left, chosen = group_scores(keys, GROUPS, SIZE, TWO), group < groups, group < 0
    for _ in tl.static_range(TOP):
        _value, first = first_best(best, left, group, GROUPS)
        chosen, left = chosen | (group == first), left & (group != first)
    open_ = tl.broadcast_to(chosen.to(tl.int32)[:, None], [GROUPS, SIZE])
    return tl.reshape(open_, [GROUPS * SIZE]) != 0


@triton.jit
def choose(
    logits_ptr, choice_ptr, factors_ptr, ids_ptr, weights_ptr, token, experts, groups, scale,
    TOP_K: tl.constexpr, SCORING: tl.constexpr, RENORMALISE: tl.constexpr, CHOICE: tl.constexpr, FACTORS: tl.constexpr,
    TOP: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr, TWO: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """The experts of one token by its logits, which other programs may have written.

    `groups` of `experts` / `groups` experts lie in GROUPS of SIZE places; CHOICE: with a bias of the choice alone,
    FACTORS: of each expert's weight; TOP: groups that are open, of which TWO says how they are compared."""
    MOST: tl.constexpr = 1 << 30
    at, slot = tl.arange(0, GROUPS * SIZE), tl.arange(0, SLOTS)
    size = experts // groups
    expert, ok = at, at < experts
    if GROUPS > 1:
        expert, ok = at // SIZE * size + at % SIZE, (at % SIZE < size) & (at // SIZE < groups)
    logits_ptr += token * experts
    scores = scores_of(
        tl.load(logits_ptr + expert, mask=ok, other=float("-inf"), cache_modifier=".cg"), ok, SCORING
    )  # fmt: skip
    keys = scores
    if CHOICE:
        keys += tl.load(choice_ptr + expert, mask=ok, other=0.0)
    if GROUPS > 1:
        keys = tl.where(open_groups(keys, groups, TOP, GROUPS, SIZE, TWO), keys, float("-inf"))
    ids = tl.zeros([SLOTS], tl.int32)
    weights = tl.full([SLOTS], float("-inf"), tl.float32)
    for k in tl.static_range(TOP_K):
        best, chosen = first_best(keys, ok, expert, MOST)
        if CHOICE:
            best = tl.sum(tl.where(expert == chosen, tl.where(ok, scores, 0.0), 0.0), axis=0)
        ids = tl.where(slot == k, chosen, ids)
        weights = tl.where(slot == k, best, weights)
        ok = ok & (expert != chosen)
    if SCORING == "softmax_topk":
        powers = tl.exp(weights - tl.max(weights, axis=0))
        weights = powers / tl.sum(powers, axis=0)
    elif SCORING == "sigmoid_topk":
        weights = 1.0 / (1.0 + exp(-tl.where(slot < TOP_K, weights, 0.0)))
    elif RENORMALISE:
        weights = tl.where(slot < TOP_K, weights, 0.0)
        weights = weights / (tl.sum(weights, axis=0) + 1e-20)
    if FACTORS:
        weights *= tl.load(factors_ptr + ids, mask=slot < TOP_K, other=0.0)
    tl.store(ids_ptr + token * TOP_K + slot, ids, mask=slot < TOP_K)
    tl.store(weights_ptr + token * TOP_K + slot, weights * scale, mask=slot < TOP_K)


@kernel()
def _route(
    logits_ptr, choice_ptr, factors_ptr, ids_ptr, weights_ptr, experts, groups, scale,
    TOP_K: tl.constexpr, SCORING: tl.constexpr, RENORMALISE: tl.constexpr, CHOICE: tl.constexpr, FACTORS: tl.constexpr,
    TOP: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr, TWO: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    choose(
        logits_ptr, choice_ptr, factors_ptr, ids_ptr, weights_ptr, tl.program_id(0).to(tl.int64), experts, groups,
        scale, TOP_K, SCORING, RENORMALISE, CHOICE, FACTORS, TOP, GROUPS, SIZE, TWO, SLOTS,
    )  # fmt: skip


class Choosing(NamedTuple):
    """What kernels are told of a choice. added: the bias of the choice and experts' factors, or what is not read;
    found: where the choice goes."""

    added: tuple[Tensor, Tensor]
    found: Choice
    numbers: tuple[int, int, float]
    constants: Mapping[str, int | str]


def choosing(x_TD: Tensor, router: Router) -> Choosing:
    """Of T tokens, checked."""
    (T, E), top_k, bias = (x_TD.shape[0], router.matrix.rows), router.top_k, router.choice_bias_E
    assert 1 <= top_k <= E, f"top {top_k} of {E}"
    assert E % router.groups == 0, f"{E} experts in {router.groups} groups"
    choice = x_TD if bias is None else launch.check(bias, launch.F32, E)
    factors = x_TD if router.factors_E is None else launch.check(router.factors_E, launch.F32, E)
    found = x_TD.new_empty(T, top_k, dtype=launch.I32), x_TD.new_empty(T, top_k)
    constants = dict(
        TOP_K=top_k, SCORING=router.scoring, RENORMALISE=router.renormalise, CHOICE=bias is not None,
        FACTORS=router.factors_E is not None, TOP=router.top_groups, GROUPS=launch.pow2(router.groups),
        SIZE=launch.pow2(E // router.groups), TWO=router.group_score == "top2", SLOTS=launch.pow2(top_k),
    )  # fmt: skip
    return Choosing((choice, factors), found, (E, router.groups, float(router.scale)), constants)


def route(x_TD: Tensor, router: Router, ids_TK: Tensor | None = None) -> Choice:
    how = choosing(x_TD, router)
    logits_TE = linear(x_TD, router.matrix, router.bias_E)
    if ids_TK is not None or router.scoring == "sqrt_softplus":  # of one model, whose streams no kernel here has
        return reference.route(x_TD, router, ids_TK)
    if router.scoring == "sparsemixer":  # of one model: a few small kernels of torch's
        return reference.sparse_mix(logits_TE, router)
    _route[(len(x_TD),)](logits_TE, *how.added, *how.found, *how.numbers, **how.constants, num_warps=1)
    return how.found
