"""Turns of neighbouring numbers, the last ones of a head: (2i, 2i + 1) instead of two halves."""

from __future__ import annotations

from torch import Tensor


def turn_pairs_(x_TNd: Tensor, cos_Pr: Tensor, sin_Pr: Tensor, positions_T: Tensor, back: bool = False) -> None:
    """Turns the last 2 r numbers of each head by their position in place, float32 [T, N, d]; back: the other way
    round."""
    r, at = cos_Pr.shape[1], positions_T.long()
    cos, sin = cos_Pr[at].unsqueeze(1), sin_Pr[at].unsqueeze(1)
    pairs = x_TNd[..., x_TNd.shape[2] - 2 * r :].unflatten(2, (r, 2))
    a, b = pairs[..., 0].clone(), pairs[..., 1].clone()
    sin = -sin if back else sin
    pairs[..., 0] = a * cos - b * sin
    pairs[..., 1] = b * cos + a * sin
