"""Routed experts that work on a narrower latent: the way there from a hidden state, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..packed import Around

if TYPE_CHECKING:
    from .. import Ops


def into(ops: Ops, around: Around | None, h_TD: Tensor) -> Tensor:
    """What routed experts take of hidden states: float32 [T, L]; None: [T, D], as they are."""
    return h_TD if around is None else ops.linear(h_TD, around.into)


def back(ops: Ops, around: Around | None, y_TL: Tensor, eps: float) -> Tensor:
    """What they give, for the residual stream: float32 [T, D]. eps: of the norm in front, if there is one."""
    if around is None:
        return y_TL
    return ops.linear(y_TL if around.norm is None else ops.rmsnorm(y_TL, around.norm, eps), around.back)
