"""What memory gives a plain read of a model's own weights, while the model runs: what its speed is held against.

A machine that others use too may give half of what the profile has for minutes. No memory is taken for it, and what is
read is too much for caches to hold.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable

import torch
from torch import Tensor

from ...kernels.context import Context
from ..devices.host import cpu_kernels
from .kernel_rates import PIECE  # of the profile's own: what starting threads takes is then the same share of both

SMALLEST, PIECES = 64 << 20, 5  # bytes that count as a piece, where tensors are no larger
LEAST = 1 << 30  # bytes of weights in RAM, below which they may lie in caches of a shared host


def of_weights(context: Context, weights: Iterable[Tensor]) -> float | None:
    """Bytes per second that all threads of a context read; None where too few of the weights lie in RAM. The median of
    some pieces, far apart from each other, after one that is not counted."""
    pieces = _pieces(weights)
    if len(pieces) <= PIECES or sum(piece.numel() for piece in pieces) < LEAST:
        return None
    cpu = cpu_kernels()
    chosen = [pieces[i * len(pieces) // (PIECES + 1)] for i in range(PIECES + 1)]
    rates: list[float] = [piece.numel() / cpu.stream_read(context, piece) for piece in chosen]
    return statistics.median(rates[1:])


def _pieces(weights: Iterable[Tensor]) -> list[Tensor]:
    """Pieces of the packed weights in RAM, without those that are short."""
    found: list[Tensor] = []
    for one in weights:
        if one.dtype is torch.uint8 and one.device.type == "cpu" and one.is_contiguous():
            found += [piece for piece in one.view(-1).split(PIECE) if piece.numel() >= SMALLEST]
    return found
