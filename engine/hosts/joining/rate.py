"""How fast this machine reads its RAM, roughly and in a moment: the weight of its share where experts are dealt out by
bandwidth. Not the rate of a kernel: those are `headrace measure`'s."""

from __future__ import annotations

import time

import torch

BYTES, ROUNDS = 128 << 20, 3


def measure() -> float:
    """Bytes a second, of the best of a few sums over 128 MB."""
    data = torch.ones(BYTES // 4)
    best = 0.0
    for _ in range(ROUNDS):
        start = time.perf_counter()
        data.sum()
        best = max(best, BYTES / (time.perf_counter() - start))
    return best
