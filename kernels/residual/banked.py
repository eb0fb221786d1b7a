"""One residual stream, and what it was in front of some layers before: a part of a layer takes a mean of all, weighted
by how well each fits; a layer that keeps the stream begins a new one.

Letters are those of `streams.py`: of m states the first is the stream, and behind it are those that are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .streams import Weights

if TYPE_CHECKING:
    from .. import Ops


@dataclass(frozen=True, kw_only=True)
class BankedStreams:
    """Of a layer with two parts. mixer, ffn: float32 [D], what states fit to, for either part; kept: states that layers
    before have kept; keeps: this one keeps the stream too, before its mixer."""

    mixer_D: Tensor
    ffn_D: Tensor
    count: int
    kept: int
    keeps: bool
    norm_eps: float

    def before_mixer(self, ops: Ops, x_TmD: Tensor, norm_D: Tensor) -> Weights:
        """What the mixer has to do with these states."""
        return self._weigh(ops, x_TmD, self.kept, self.mixer_D, norm_D, keeps=self.keeps)

    def before_ffn(self, ops: Ops, x_TmD: Tensor, norm_D: Tensor) -> Weights:
        """What the other part has to do with them."""
        return self._weigh(ops, x_TmD, self.kept + self.keeps, self.ffn_D, norm_D, keeps=False)

    def _weigh(self, ops: Ops, x_TmD: Tensor, kept: int, by_D: Tensor, norm_D: Tensor, keeps: bool) -> Weights:
        T, m, _ = x_TmD.shape
        gives_Tm = x_TmD.new_zeros(T, m)
        gives_Tm[:, 0] = 1
        mixes_Tmm = None
        if keeps:  # the stream goes to the next place, and nothing stays in its own
            mixes_mm = torch.eye(m)
            mixes_mm[0, 0], mixes_mm[kept + 1, kept + 1], mixes_mm[0, kept + 1] = 0, 0, 1
            mixes_Tmm = mixes_mm.expand(T, m, m)
        return Weights(
            gives_Tm=gives_Tm, mixes_Tmm=mixes_Tmm, taken_TD=taken(ops, x_TmD, kept, by_D, norm_D, self.norm_eps)
        )


def taken(ops: Ops, x_TmD: Tensor, kept: int, by_D: Tensor, norm_D: Tensor, eps: float) -> Tensor:
    """The mean of the stream and of so many kept states, normed: float32 [T, D]. A state weighs by the softmax of what
    it gives with `by`, once its length is taken out."""
    x_TnD = x_TmD[:, : kept + 1]
    if kept == 0:
        return ops.rmsnorm(x_TnD[:, 0].contiguous(), norm_D, eps)
    return ops.take_streams(x_TnD, ops.fit_streams(x_TnD, by_D, eps), norm_D, eps)
