"""All of a layer before its experts, and all layers.

A step of a few tokens is held up by launches, not by arithmetic, so what is small goes into the launch of what comes
next:

    norm, qkv                        one (one token; more: two)          `normed/linear.py`
    heads made ready, attention      one (a token of each sequence)      `attention/decode_placed.py`
    o                                one
    norm, router, choice             one                                 `normed/route.py`

`compose` says what comes out, and computes whatever these do not have. x may come out as new memory.
"""

from __future__ import annotations

from torch import Tensor

from .. import Ops, load
from ..decoder_layer import AttentionBlock, Block, Places, Stack, added_and_normed, compose, compose_layers, linear
from ..passes.tally import Choice, Tally
from .attention.attention import place_and_attend
from .attention.decode_placed import Place
from .attention.qkv import norms_of_heads
from .linear import FEW
from .normed.linear import norm_linear
from .normed.route import norm_route, takes
from .normed.stream import Stream

WIDE = 256  # numbers of a head from which on one is made ready by itself


def attention_block(
    x_TD: Tensor, update_TD: Tensor | None, block: Block, places: Places, rows_R: Tensor | None = None
) -> tuple[Tensor, Tensor, Choice | None]:
    ops = load("gpu")
    if len(x_TD) > FEW or rows_R is not None or block.by_ops or block.pre_bias is not None:
        return compose(ops, x_TD, update_TD, block, places, rows_R)
    if block.o is None:
        return _choose(ops, Stream(x_TD, update_TD, block.residual_scale, block.pre_norm, block.eps), block)
    x_TD, a_TN = _mix(ops, x_TD, update_TD, block, places)
    a_TD = ops.linear(a_TN, block.o, block.o_bias)
    if block.out_norm is not None:
        a_TD = ops.rmsnorm(a_TD, block.out_norm, block.eps)
    if block.post_norm is None:
        return x_TD, a_TD, None
    return _choose(ops, Stream(x_TD, a_TD, block.residual_scale, block.post_norm, block.eps), block)


def _mix(ops: Ops, x_TD: Tensor, update_TD: Tensor | None, block: Block, places: Places) -> tuple[Tensor, Tensor]:
    """x after its update, and what goes into `o`."""
    norm = block.pre_norm, block.pre_bias, block.eps, block.residual_scale
    if not isinstance(block, AttentionBlock) or not _is_one_launch(block, places, len(x_TD)):
        a_TN = block.mix(ops, added_and_normed(ops, x_TD, update_TD, *norm), places, wanted=True)
        assert a_TN is not None, "a mixer that gives nothing"
        return x_TD, a_TN
    if len(x_TD) > 1 or block.gate is not None:
        h_TD = added_and_normed(ops, x_TD, update_TD, *norm)
        a_TN = _attend(block, linear(ops, h_TD, block.qkv, block.qkv_bias), places)
        if block.gate is not None:
            (ops.softplus_mul_ if block.soft else ops.sigmoid_mul_)(a_TN, ops.linear(h_TD, block.gate))
        return x_TD, a_TN
    if update_TD is not None and _is_far(update_TD, x_TD):
        added_and_normed(ops, x_TD, update_TD, *norm)  # for x alone: what follows has the bits that it has otherwise
        update_TD = None
    stream = Stream(x_TD, update_TD, block.residual_scale, block.pre_norm, block.eps)
    x_TD, qkv_TR = norm_linear(stream, block.qkv, block.qkv_bias)
    return x_TD, _attend(block, qkv_TR, places)


def _is_far(update_TD: Tensor, x_TD: Tensor) -> bool:
    """Whether an update lies in RAM, where not every program is to read it: in a captured step, whose steps by hand
    have brought it up."""
    return update_TD.device != x_TD.device


def _is_one_launch(block: AttentionBlock, places: Places, tokens: int) -> bool:
    """Whether heads are made ready and attend in one launch."""
    asks_more = block.first is not None or block.temperature_P is not None or block.v_norm is not None or block.shared
    return tokens == len(places.contexts_S) and not asks_more and block.k_PGBd.shape[3] <= WIDE


def _attend(block: AttentionBlock, qkv_TR: Tensor, places: Places) -> Tensor:
    """Attention of one new token of each sequence: float32 [T, N v]."""
    pages, (_, groups, _, d) = places.of(block.kind), block.k_PGBd.shape
    qk_THd = qkv_TR[:, : (block.heads + groups) * d].unflatten(1, (-1, d))
    place = Place(
        pages.slots_T, block.cos_Pr, block.sin_Pr, places.positions_T,
        norms_of_heads(qk_THd, block.heads, block.q_norm, block.k_norm, block.eps, False), block.eps, block.clip,
        block.v_scale,
    )  # fmt: skip
    return place_and_attend(
        qkv_TR, block.k_PGBd, block.v_PGBd, pages, places, place, block.scale, block.window, block.sinks_N, block.chunk
    ).flatten(1)


def _choose(ops: Ops, stream: Stream, block: Block) -> tuple[Tensor, Tensor, Choice | None]:
    """x after its update, normed, and the experts that these rows choose, if there are any."""
    norm_D, bias_D, router = stream.norm_D, None if block.o is None else block.post_bias, block.router
    if router is not None and block.router_norm is None and bias_D is None and takes(len(stream.x_TD), router):
        return norm_route(stream, router)
    x_TD = stream.x_TD
    h_TD = added_and_normed(ops, x_TD, stream.update_TD, norm_D, bias_D, stream.eps, stream.factor)
    if router is None:
        return x_TD, h_TD, None
    seen_TD = h_TD if block.router_norm is None else ops.rmsnorm(x_TD, block.router_norm, block.eps)
    return x_TD, h_TD, ops.route(seen_TD, router)


def layers(
    x_TD: Tensor, stack: Stack, places: Places, rows_R: Tensor | None = None, tally: Tally | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    return compose_layers(load("gpu"), x_TD, stack, places, rows_R, tally)
