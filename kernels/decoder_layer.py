"""All of a decoder layer before its experts as one op, and all layers as one: what they need ready at load, and what
they are made of.

One op, because Python is slow where it matters: a decode step streams all caches full of weights, so the interpreter
finds nothing of its own there again, and every call between two ops costs 10 to 25 us instead of 2. A backend may run
it all at once; `compose` and `compose_layers` say in terms of the other ops what must come out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .blocks.cache_rows import Rows
from .packed import Around, ExpertBank, Matrix, Mlp, Stacked, Tail
from .passes.tally import Choice, Tally
from .recipes import GroupScore, Scoring
from .residual.around import back, into
from .residual.banked import BankedStreams
from .residual.gated import GatedStreams
from .residual.streams import Streams, added

if TYPE_CHECKING:
    from . import Ops

TOKENS = "tokens"  # where `Places.chosen` has those of a pass, int64 [T], for what goes by them
Several = Streams | GatedStreams | BankedStreams


@dataclass(frozen=True, kw_only=True)
class Router:
    """How a layer chooses experts; see `route`."""

    matrix: Matrix  # [E, D]
    top_k: int
    scoring: Scoring
    renormalise: bool
    bias_E: Tensor | None = None  # float32, of the logits
    choice_bias_E: Tensor | None = None  # float32, added to scores for the choice alone
    groups: int = 1  # of neighbouring experts, of which `top_groups` are open to a token
    top_groups: int = 1
    group_score: GroupScore = "top2"
    scale: float = 1.0  # of the weights
    factors_E: Tensor | None = None  # float32, of each expert's weight besides
    jitter: float = 0.0  # of sparsemixer: half the distance from which on experts are masked
    table_VK: Tensor | None = None  # float32, of each token its experts: no score chooses them


@dataclass(frozen=True, kw_only=True)
class Block(ABC):
    """A layer before its experts: a mixer between two norms, what it projects back with, and the router, if there are
    experts. A subclass says what is mixed. A layer may be its mixer alone, or have none (`FeedBlock`)."""

    pre_norm: Tensor  # float32 [D], before the mixer
    o: Matrix | None  # [D, what the mixer gives]; None: there is no mixer
    o_bias: Tensor | None
    post_norm: Tensor | None  # float32 [D], after the residual sum; None: the layer ends with its mixer, or has none
    eps: float
    residual_scale: float  # of what is added to the residual stream
    router: Router | None
    out_norm: Tensor | None = None  # float32 [D], of what is projected back, before the residual sum
    router_norm: Tensor | None = None  # float32 [D], of the residual sum before the router; None: it sees `post_norm`'s
    pre_bias: Tensor | None = None  # float32 [D]; with a bias a norm is a LayerNorm, without one an RMSNorm
    post_bias: Tensor | None = None
    streams: Several | None = None  # several: x is then rows of `residual/streams.py`
    grams: Beside | None = None  # what is added to the streams before the layer
    native: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # what a backend keeps of it

    @property
    def by_ops(self) -> bool:
        """Whether no backend has it as one op, so that it always runs as the sequence of ops that `mix` is."""
        return self.streams is not None or (self.router is not None and self.router.table_VK is not None)

    @abstractmethod
    def mix(self, ops: Ops, h_TD: Tensor, places: Places, wanted: bool) -> Tensor | None:
        """What goes into `o` of normed tokens, float32 [T, o.cols], their keys and values (or states) kept. Not
        wanted: these are kept alone."""


class Beside(Protocol):
    """What makes something of tokens for each stream; see `grams/grams.py`."""

    def made(self, ops: Ops, x_TmD: Tensor, places: Places) -> Tensor:
        """float32 [T, m, D]; `Places.chosen` has the tokens."""


class BlockChoice(Protocol):
    """What chooses blocks of keys; see `sparse/blocks.py`."""

    @property
    def seen(self) -> int:
        """The longest context that is seen as a whole."""

    def keep(self, ops: Ops, h_TD: Tensor, places: Places) -> None:
        """Writes what it keeps of new tokens."""

    def attend(
        self, ops: Ops, h_TD: Tensor, q_TNd: Tensor, k_PGBd: Rows, v_PGBv: Rows, places: Places, scale: float
    ) -> Tensor:
        """Attention to the keys that are seen: float32 [T, N, v]."""


@dataclass(frozen=True, kw_only=True)
class AttentionBlock(Block):
    """Grouped-query attention: weights, part of the cache, constants. Shapes as in `reference.py`."""

    heads: int
    qkv: Stacked  # [N d + G d + G v, D]
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    k_PGBd: Rows
    v_PGBd: Rows  # [P, G, B, v]
    cos_Pr: Tensor
    sin_Pr: Tensor
    clip: float | None
    scale: float  # of scores
    window: int | None = None  # tokens that a query sees, itself included; None: all
    chunk: int | None = None  # of so many positions: a query sees those of its own one
    temperature_P: Tensor | None = None  # float32, by position: what queries are multiplied by
    sinks_N: Tensor | None = None  # float32
    gate: Matrix | None = None  # [N v, D] or [N, D]; what the heads give is weighted by the sigmoid of its product
    soft: bool = False  # or by the softplus
    first: tuple[Tensor, Tensor] | None = None  # cos and sin of a turn before the norms; the other then turns nothing
    v_norm: Tensor | None = None  # float32 [v]
    v_scale: float = 1.0  # of values
    shared: bool = False  # keys serve as values, see `place_qkv_`: qkv is [(N + G) d, D]
    kind: int = 0  # of its pages, see `Places.of`

    blocks: BlockChoice | None = None  # some keys are seen alone

    @property
    def by_ops(self) -> bool:
        return super().by_ops or self.blocks is not None

    def mix(self, ops: Ops, h_TD: Tensor, places: Places, wanted: bool) -> Tensor | None:
        caches, (_, groups, _, d) = (self.k_PGBd, self.v_PGBd), self.k_PGBd.shape
        qkv_TR = linear(ops, h_TD, self.qkv, self.qkv_bias)
        qk_THd = qkv_TR[:, : (self.heads + groups) * d].unflatten(1, (-1, d))
        turns, pages = (self.cos_Pr, self.sin_Pr, places.positions_T), places.of(self.kind)
        if self.first is not None:
            ops.rotate_(qk_THd, *self.first, places.positions_T)
        ops.place_qkv_(
            qkv_TR, *caches, pages.slots_T, *turns, self.q_norm, self.k_norm, self.eps, self.clip, self.v_norm,
            self.shared, self.v_scale,
        )  # fmt: skip
        if self.blocks is not None:
            self.blocks.keep(ops, h_TD, places)
        if not wanted:
            return None
        if self.temperature_P is not None:
            ops.scale_rows_(qk_THd[:, : self.heads], self.temperature_P, places.positions_T)
        batch = pages.tables_SM, places.starts_S1, places.contexts_S
        q_TNd = qk_THd[:, : self.heads]
        if self.blocks is not None and int(places.contexts_S.max()) > self.blocks.seen:
            a_TN = self.blocks.attend(ops, h_TD, q_TNd, *caches, places, self.scale).flatten(1)
        else:
            a_TN = ops.attention(q_TNd, *caches, *batch, self.scale, self.window, self.sinks_N, self.chunk).flatten(1)
        if self.gate is not None:
            (ops.softplus_mul_ if self.soft else ops.sigmoid_mul_)(a_TN, ops.linear(h_TD, self.gate))
        return a_TN


@dataclass(frozen=True, kw_only=True)
class FeedBlock(Block):
    """Of a layer without a mixer: its norm, and the router."""

    def mix(self, ops: Ops, h_TD: Tensor, places: Places, wanted: bool) -> Tensor | None:
        raise AssertionError("a layer without a mixer")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One decoder layer: a mixer, then experts, or a dense MLP (no bank), or experts and a shared one (both), or
    nothing."""

    block: Block
    bank: ExpertBank | None
    mlp: Mlp | None
    shared_gate: Matrix | None  # [1, D] of the shared MLP
    tail: Tail | None = None  # only with experts and an MLP that has no gate
    around: Around | None = None  # of experts on a narrower latent


@dataclass(frozen=True, kw_only=True)
class Stack:
    """All layers of a decoder."""

    layers: tuple[Layer, ...]
    native: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def by_ops(self) -> bool:
        """Whether a layer is such that no backend has it as one op."""
        return any(layer.block.by_ops or layer.around is not None for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Tokens [first, last) of one sequence, behind which its recurrent state is copied into slot `keep`, if there is
    one. The tensors are those of `Places` for this sequence alone."""

    first: int
    last: int
    states_S: Tensor  # int32 [1]
    starts_S1: Tensor  # int32 [2]
    contexts_S: Tensor  # int32 [1]
    slot: int
    keep: int | None

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """The slot of its state, its starts and its context."""
        return self.states_S, self.starts_S1, self.contexts_S

    def at(self, states_S: Tensor, starts_S1: Tensor, contexts_S: Tensor) -> Piece:
        """The same with these tensors, of another device."""
        return replace(self, states_S=states_S, starts_S1=starts_S1, contexts_S=contexts_S)


class Pages(NamedTuple):
    """Where layers of one kind keep rows of T new tokens, and the pages of S sequences, as in `Places`."""

    slots_T: Tensor
    tables_SM: Tensor


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where T new tokens of S sequences stand, in their sequences and in the cache."""

    positions_T: Tensor  # int32
    slots_T: Tensor  # int64
    tables_SM: Tensor  # int32
    starts_S1: Tensor  # int32
    contexts_S: Tensor  # int32
    states_S: Tensor | None = None  # int32: slots of recurrent states, of models that have such
    pieces: tuple[Piece, ...] = ()  # of the tokens, where states are kept on the way; else all are one piece
    windows: tuple[Pages, ...] = ()  # by kind, of layers over a window that have pages of their own
    chosen: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)  # by a layer, for those behind
    native: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def of(self, kind: int) -> Pages:
        """Where layers of a kind find their rows; 0: those that see everything."""
        return self.windows[kind - 1] if kind else Pages(self.slots_T, self.tables_SM)


def linear(ops: Ops, x_TC: Tensor, weights: Stacked, bias_R: Tensor | None = None) -> Tensor:
    """x @ weights.T + bias, float32 [T, R]: the products of all parts side by side."""
    if len(weights.parts) == 1:
        return ops.linear(x_TC, weights.parts[0], bias_R)
    biases = [None] * len(weights.parts) if bias_R is None else bias_R.split([part.rows for part in weights.parts])
    return torch.cat([ops.linear(x_TC, part, bias) for part, bias in zip(weights.parts, biases, strict=True)], dim=1)


def compose(
    ops: Ops, x_TD: Tensor, update_TD: Tensor | None, block: Block, places: Places, rows_R: Tensor | None
) -> tuple[Tensor, Tensor, Choice | None]:
    """`attention_block` as the sequence of ops that it stands for."""
    if block.streams is not None:
        return _compose_streams(ops, x_TD, update_TD, block, block.streams, places, rows_R)
    goes_on = rows_R is None or len(rows_R) > 0
    if block.o is None and not goes_on:
        return x_TD[:0], x_TD[:0], None
    h_TD = added_and_normed(ops, x_TD, update_TD, block.pre_norm, block.pre_bias, block.eps, block.residual_scale)
    a_TN = block.mix(ops, h_TD, places, wanted=goes_on) if block.o is not None else h_TD
    if a_TN is None or not goes_on:
        return x_TD[:0], h_TD[:0], None
    if rows_R is not None:
        a_TN, x_TD = a_TN[rows_R], x_TD[rows_R]
    h_TD = a_TN if block.o is None else _project(ops, x_TD, a_TN, block, block.o)
    if block.router is None:
        return x_TD, h_TD, None
    seen_TD = h_TD if block.router_norm is None else ops.rmsnorm(x_TD, block.router_norm, block.eps)
    return x_TD, h_TD, _route(ops, seen_TD, block.router, places, rows_R)


def _route(ops: Ops, x_TD: Tensor, router: Router, places: Places, rows_R: Tensor | None) -> Choice:
    """The experts of these tokens, by their scores or by what tokens they are."""
    if router.table_VK is None:
        return ops.route(x_TD, router)
    tokens_T = places.chosen[TOKENS]
    ids_TK = router.table_VK[tokens_T if rows_R is None else tokens_T[rows_R]].to(torch.int32)
    return ops.route(x_TD, router, ids_TK)


def _compose_streams(
    ops: Ops, x_TX: Tensor, update_TD: Tensor | None, block: Block, by: Several, places: Places, rows_R: Tensor | None
) -> tuple[Tensor, Tensor, Choice | None]:
    """The same with several residual streams: x is [T, X]."""
    assert block.o is not None, "streams of a layer without a mixer"
    assert block.post_norm is not None, "streams of a layer that ends there"
    goes_on = rows_R is None or len(rows_R) > 0
    x_TmD = added(ops, x_TX, update_TD, by.count)
    if block.grams is not None:
        x_TmD = x_TmD + block.grams.made(ops, x_TmD, places)
    weights = by.before_mixer(ops, x_TmD, block.pre_norm)
    a_TN = block.mix(ops, weights.taken_TD, places, wanted=goes_on)
    if a_TN is None or not goes_on:
        return x_TX[:0], weights.taken_TD[:0], None
    if rows_R is not None:
        a_TN, x_TmD, weights = a_TN[rows_R], x_TmD[rows_R], weights.at(rows_R)
    x_TmD = weights.closed(ops, x_TmD, ops.linear(a_TN, block.o, block.o_bias))
    weights = by.before_ffn(ops, x_TmD, block.post_norm)
    h_TD = weights.taken_TD
    choice = None if block.router is None else _route(ops, h_TD, block.router, places, rows_R)
    return weights.pending(ops, x_TmD), h_TD, choice


def added_and_normed(
    ops: Ops, x_TD: Tensor, y_TD: Tensor | None, weight_D: Tensor, bias_D: Tensor | None, eps: float, scale: float
) -> Tensor:
    """The norm of x, to which scale * y is added in place before, if there is a y: float32 [T, D]."""
    if bias_D is None:
        return ops.rmsnorm(x_TD, weight_D, eps) if y_TD is None else ops.add_rmsnorm_(x_TD, y_TD, weight_D, eps, scale)
    if y_TD is None:
        return ops.layernorm(x_TD, weight_D, bias_D, eps)
    return ops.add_layernorm_(x_TD, y_TD, weight_D, bias_D, eps, scale)


def _project(ops: Ops, x_TD: Tensor, a_TN: Tensor, block: Block, o: Matrix) -> Tensor:
    """What a mixer gives back to the residual stream, added to it and normed, or, where the layer ends there, as it
    is: float32 [T, D]."""
    a_TD = ops.linear(a_TN, o, block.o_bias)
    if block.out_norm is not None:
        a_TD = ops.rmsnorm(a_TD, block.out_norm, block.eps)
    if block.post_norm is None:
        return a_TD
    return added_and_normed(ops, x_TD, a_TD, block.post_norm, block.post_bias, block.eps, block.residual_scale)


def compose_layers(
    ops: Ops, x_TD: Tensor, stack: Stack, places: Places, rows_R: Tensor | None, tally: Tally | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`layers` as the sequence of ops that it stands for: x, the last update, and of each layer how many different
    experts were chosen, int32 [L]."""
    update_TD, distinct_L = None, torch.zeros(len(stack.layers), dtype=torch.int32, device=x_TD.device)
    for i, layer in enumerate(stack.layers):
        rows = rows_R if i == len(stack.layers) - 1 else None
        x_TD, h_TD, choice = ops.attention_block(x_TD, update_TD, layer.block, places, rows)
        if x_TD.shape[0] == 0:
            return x_TD, h_TD, distinct_L  # its keys and values are written, and nobody asks for more
        if choice is None:
            update_TD = h_TD if layer.mlp is None else mlp(ops, layer.mlp, h_TD)
            continue
        assert layer.bank is not None, f"layer {i} has a router and no experts"
        seen_E = torch.zeros(layer.bank.experts, dtype=torch.int32, device=x_TD.device)
        distinct_L[i] = seen_E.scatter_(0, choice[0].flatten().long(), 1).sum()
        if tally is not None:
            tally.take(i, choice)
        made_TL = ops.experts(into(ops, layer.around, h_TD), *choice, layer.bank)
        update_TD = back(ops, layer.around, made_TL, layer.block.eps)
        if layer.tail is not None:
            beside_TD = beside(ops, x_TD, layer, layer.tail)
            update_TD = finish_(ops, x_TD, update_TD, beside_TD, layer.tail, layer.block.eps)
        elif layer.mlp is not None:
            gate_T1 = None if layer.shared_gate is None else ops.linear(h_TD, layer.shared_gate)
            ops.gated_add_(update_TD, mlp(ops, layer.mlp, h_TD), gate_T1)
    assert update_TD is not None, "a model without layers"
    return x_TD, update_TD, distinct_L


def beside(ops: Ops, x_TD: Tensor, layer: Layer, tail: Tail) -> Tensor:
    """The MLP of a layer with norms of its own, of the residual stream after attention: float32 [T, D], normed."""
    eps = layer.block.eps
    return ops.rmsnorm(mlp(ops, layer.mlp, ops.rmsnorm(x_TD, tail.mlp_in, eps)), tail.mlp_out, eps)


def finish_(ops: Ops, x_TD: Tensor, experts_TD: Tensor, beside_TD: Tensor, tail: Tail, eps: float) -> Tensor:
    """What such a layer adds to the residual stream, float32 [T, D]: the normed sum of `beside`, which is overwritten,
    and of normed experts. Both x, in place, and what comes out are multiplied by the layer's scale."""
    ops.gated_add_(beside_TD, ops.rmsnorm(experts_TD, tail.experts_out, eps))
    update_TD = ops.rmsnorm(beside_TD, tail.out, eps)
    ops.scale_(x_TD, tail.scale)
    ops.scale_(update_TD, tail.scale)
    return update_TD


def mlp(ops: Ops, weights: Mlp | None, h_TD: Tensor) -> Tensor:
    """A dense or a shared MLP: float32 [T, D]."""
    assert weights is not None, "a layer without an MLP"
    return ops.linear(ops.glu(linear(ops, h_TD, weights.gate_up), weights.activation), weights.down)
