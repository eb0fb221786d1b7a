"""Several residual streams that are not mixed: a part of a layer takes the mean of all, normed and dim by dim through
gates that are made of them by way of a lower rank, and gives to each what it made times a number.

Letters are those of `streams.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ..packed import GatedMixing
from .streams import Weights

if TYPE_CHECKING:
    from .. import Ops


@dataclass(frozen=True, kw_only=True)
class GatedStreams:
    """Of a layer with two parts. Norms are of all streams, float32 [m D], each stream by itself."""

    mixer: GatedMixing
    ffn: GatedMixing
    count: int
    norm_eps: float

    def before_mixer(self, ops: Ops, x_TmD: Tensor, norm_C: Tensor) -> Weights:
        """What the mixer has to do with these streams."""
        return weigh(ops, self.mixer, x_TmD, norm_C, self.norm_eps)

    def before_ffn(self, ops: Ops, x_TmD: Tensor, norm_C: Tensor) -> Weights:
        """What the other part has to do with them."""
        return weigh(ops, self.ffn, x_TmD, norm_C, self.norm_eps)


def by_stream(ops: Ops, x_TmD: Tensor, norm_C: Tensor, eps: float) -> Tensor:
    """Each stream behind an RMSNorm of its own: float32 [T, m D]."""
    ones = x_TmD.new_ones(x_TmD.shape[2])
    return ops.rmsnorm(x_TmD.contiguous(), ones, eps).flatten(1) * norm_C


def weigh(ops: Ops, part: GatedMixing, x_TmD: Tensor, norm_C: Tensor, eps: float) -> Weights:
    """A part's weights of these streams, in float32."""
    m = x_TmD.shape[1]
    normed_TC = by_stream(ops, x_TmD, norm_C, eps)
    low_TR = ops.linear(normed_TC, part.down) / m
    ops.sigmoid_mul_(low_TR, low_TR.clone())
    taken_TD = ops.gate_streams(normed_TC.view(x_TmD.shape), ops.linear(low_TR, part.up))
    gives_Tm = taken_TD.new_zeros(len(taken_TD), m)
    if part.inject is not None:
        gives_Tm += 2
        ops.sigmoid_mul_(gives_Tm, ops.linear(normed_TC, part.inject) / m)
    return Weights(gives_Tm=gives_Tm, mixes_Tmm=None, taken_TD=taken_TD)
