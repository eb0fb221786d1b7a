"""The plain twins of the ops of several residual streams, in pure torch.

Letters are those of `streams.py`; besides: W = (2 + m) m, n streams of those that there are.
"""

from __future__ import annotations

import torch
from torch import Tensor


def stream_weights(
    products_TW: Tensor, base_W: Tensor, scale_3: Tensor, rounds: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What a part takes of each stream, gives to each, and how they mix, from and to: float32 [T, m], [T, m] and
    [T, m, m]. products: float32, of all streams with the part's matrix."""
    W = len(base_W)
    m = int((1 + W) ** 0.5) - 1
    parts = zip(products_TW.split([m, m, m * m], 1), scale_3, base_W.split([m, m, m * m]), strict=True)
    takes, gives, mixes = (products * scale + base for products, scale, base in parts)
    mixes_Tmm = balanced(mixes.unflatten(1, (m, m)).softmax(2) + eps, rounds, eps)
    return takes.sigmoid() + eps, 2 * gives.sigmoid(), mixes_Tmm


def balanced(x_Tmm: Tensor, rounds: int, eps: float) -> Tensor:
    """Columns, then rows and columns by turns divided by their sums, until columns were so often: Sinkhorn and Knopp's
    way to a matrix whose rows and columns all have a sum of 1."""
    x_Tmm = x_Tmm / (x_Tmm.sum(1, keepdim=True) + eps)
    for _ in range(rounds - 1):
        x_Tmm = x_Tmm / (x_Tmm.sum(2, keepdim=True) + eps)
        x_Tmm = x_Tmm / (x_Tmm.sum(1, keepdim=True) + eps)
    return x_Tmm


def take_streams(x_TnD: Tensor, takes_Tn: Tensor, norm_D: Tensor | None, eps: float) -> Tensor:
    """The weighted sum of streams, behind an RMSNorm where there is one: float32 [T, D]."""
    y_TD = (takes_Tn.unsqueeze(2) * x_TnD).sum(1)
    return y_TD if norm_D is None else y_TD * torch.rsqrt(y_TD.square().mean(1, keepdim=True) + eps) * norm_D


def close_streams(x_TmD: Tensor, mixes_Tmm: Tensor | None, gives_Tm: Tensor, made_TD: Tensor | None) -> Tensor:
    """The streams, mixed, and of what was made what each is given: float32 [T, m, D]. None: each stays as it is;
    nothing was made."""
    mixed = x_TmD if mixes_Tmm is None else mixes_Tmm.transpose(1, 2) @ x_TmD
    return mixed.clone() if made_TD is None else mixed + gives_Tm.unsqueeze(2) * made_TD.unsqueeze(1)


def fit_streams(x_TnD: Tensor, by_D: Tensor, eps: float) -> Tensor:
    """The softmax over streams of what each gives with `by`, once its length is taken out: float32 [T, n]."""
    return ((x_TnD @ by_D) * torch.rsqrt(x_TnD.square().mean(2) + eps)).softmax(1)


def gate_streams(x_TmD: Tensor, open_TC: Tensor) -> Tensor:
    """The mean of streams, each number by the sigmoid of its own: float32 [T, D]. open, [T, m D], is used up."""
    return (open_TC.sigmoid().view(x_TmD.shape) * x_TmD).mean(1)
