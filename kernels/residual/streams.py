"""Several residual streams in place of one: each part of a layer takes a weighted sum of them, gives to each what it
made times a weight, and mixes them by a matrix whose rows and columns have a sum of 1.

Between layers a token's row is its m streams and, behind them, m weights: of what the layer before made, which is
still to be added. Besides the letters of `reference.py`: m streams, X = m D + m.
Source: mHC (arXiv 2512.24880, section 4), after Hyper-Connections (arXiv 2409.19606).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..packed import Mixing

if TYPE_CHECKING:
    from .. import Ops


def opened(x_TD: Tensor, count: int) -> Tensor:
    """Rows of an embedding in every stream, nothing to be added: float32 [T, X]."""
    return torch.cat([x_TD.repeat(1, count), x_TD.new_zeros(len(x_TD), count)], dim=1)


def closed(ops: Ops, x_TX: Tensor, update_TD: Tensor | None, count: int) -> Tensor:
    """The mean of the streams, with what the last layer made: float32 [T, D]."""
    x_TmD = added(ops, x_TX, update_TD, count)
    return ops.take_streams(x_TmD, x_TX.new_full((len(x_TX), count), 1 / count), None, 0.0)


def added(ops: Ops, x_TX: Tensor, update_TD: Tensor | None, count: int) -> Tensor:
    """The streams, with what the layer before made: float32 [T, m, D]."""
    x_TmD: Tensor = x_TX[:, :-count].unflatten(1, (count, -1))
    return x_TmD if update_TD is None else ops.close_streams(x_TmD, None, x_TX[:, -count:], update_TD)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Of one part of a layer, by token. gives: of what it makes for each stream; mixes: [T, m, m], from and to, None:
    each stream stays as it is; taken: what it takes of all streams, normed, float32 [T, D]."""

    gives_Tm: Tensor
    mixes_Tmm: Tensor | None
    taken_TD: Tensor

    def at(self, rows_R: Tensor | None) -> Weights:
        """Those of these tokens; None: of all."""
        if rows_R is None:
            return self
        mixes = None if self.mixes_Tmm is None else self.mixes_Tmm[rows_R]
        return Weights(gives_Tm=self.gives_Tm[rows_R], mixes_Tmm=mixes, taken_TD=self.taken_TD[rows_R])

    def pending(self, ops: Ops, x_TmD: Tensor) -> Tensor:
        """Rows between layers, of a part that has not made anything yet: float32 [T, X]."""
        mixed = x_TmD if self.mixes_Tmm is None else ops.close_streams(x_TmD, self.mixes_Tmm, self.gives_Tm, None)
        return torch.cat([mixed.flatten(1), self.gives_Tm], dim=1)

    def closed(self, ops: Ops, x_TmD: Tensor, made_TD: Tensor) -> Tensor:
        """The streams behind a part: float32 [T, m, D]."""
        return ops.close_streams(x_TmD, self.mixes_Tmm, self.gives_Tm, made_TD)


@dataclass(frozen=True, kw_only=True)
class Streams:
    """Of a layer with two parts: what looks at other tokens, then what every token goes through alone."""

    mixer: Mixing
    ffn: Mixing
    count: int
    rounds: int
    eps: float
    norm_eps: float

    def before_mixer(self, ops: Ops, x_TmD: Tensor, norm_D: Tensor) -> Weights:
        """What the mixer has to do with these streams."""
        return self._weigh(ops, self.mixer, x_TmD, norm_D)

    def before_ffn(self, ops: Ops, x_TmD: Tensor, norm_D: Tensor) -> Weights:
        """What the other part has to do with them."""
        return self._weigh(ops, self.ffn, x_TmD, norm_D)

    def _weigh(self, ops: Ops, part: Mixing, x_TmD: Tensor, norm_D: Tensor) -> Weights:
        """A part's weights of these streams, in float32. norm: of what it takes."""
        products_TW = ops.linear(_normed(ops, x_TmD, self.norm_eps), part.fn)
        takes_Tm, gives_Tm, mixes_Tmm = ops.stream_weights(products_TW, part.base, part.scale, self.rounds, self.eps)
        taken_TD = ops.take_streams(x_TmD, takes_Tm, norm_D, self.norm_eps)
        return Weights(gives_Tm=gives_Tm, mixes_Tmm=mixes_Tmm, taken_TD=taken_TD)


def weighed(ops: Ops, part: Mixing, x_TmD: Tensor, eps: float, norm_eps: float) -> Tensor:
    """The streams behind the last layer, each by a weight that is made of all: float32 [T, D]. part: fn [m, m D], base
    [m], scale [1]."""
    logits_Tm = ops.linear(_normed(ops, x_TmD, norm_eps), part.fn) * part.scale + part.base
    takes_Tm = torch.ones_like(logits_Tm)
    ops.sigmoid_mul_(takes_Tm, logits_Tm)
    return ops.take_streams(x_TmD, takes_Tm + eps, None, 0.0)


def _normed(ops: Ops, x_TmD: Tensor, eps: float) -> Tensor:
    """All streams as one row behind an RMSNorm without weights: float32 [T, m D]."""
    flat_TC = x_TmD.flatten(1).contiguous()
    return ops.rmsnorm(flat_TC, flat_TC.new_ones(flat_TC.shape[1]), eps)
