"""How fast this machine reads its RAM and computes this model's experts, roughly and in a moment: its part where
experts are dealt out by bandwidth, and what a pass with hosts should take. `headrace measure` says more."""

from __future__ import annotations

import time

import torch

from ....kernels import ExpertLayout, Ops
from ....kernels.packed import ExpertBank

BYTES, ROUNDS = 128 << 20, 3
TOKENS = (1, 4, 16, 64)  # that an expert serves at once
SECONDS = 0.15  # of all rounds with so many, and of all sums
FILLED = 0x3C  # a byte that makes numbers of plain size in the formats that there are


def measure() -> float:
    """Bytes a second, of the best of some sums over 128 MB: machines that share theirs with others disturb a few."""
    data = torch.ones(BYTES // 4)
    best, rounds, end = 0.0, 0, time.perf_counter() + SECONDS
    while rounds < ROUNDS or time.perf_counter() < end:
        start = time.perf_counter()
        data.sum()
        best, rounds = max(best, BYTES / (time.perf_counter() - start)), rounds + 1
    return best


def experts(ops: Ops, layout: ExpertLayout, count: int) -> dict[int, float]:
    """By tokens that an expert serves at once, bytes a second of experts of 128 MB, or of as many as the model has: a
    small one stays in caches here as there."""
    bank = ExpertBank.empty(layout, max(1, min(count, BYTES // layout.bytes)))
    bank.data.fill_(FILLED)
    found: dict[int, float] = {}
    count = bank.experts  # of a round
    for tokens in TOKENS:
        found[tokens] = _best(ops, bank, count, tokens)
        fitting = found[tokens] * SECONDS / layout.bytes / 4  # the next number takes at most four times as long
        count = max(1, min(count, int(fitting)))
    return found


@torch.inference_mode()
def _best(ops: Ops, bank: ExpertBank, count: int, tokens: int) -> float:
    """The most bytes a second of a few rounds, each of other experts while there are some."""
    x_ND = torch.full((count * tokens, bank.layout.hidden), 0.01)
    weights_N1 = torch.ones(count * tokens, 1)
    best, first, end = 0.0, 0, time.perf_counter() + SECONDS
    for number in range(ROUNDS):
        ids_N1 = ((torch.arange(count) + first) % bank.experts).int().repeat_interleave(tokens).unsqueeze(1)
        start = time.perf_counter()
        ops.experts(x_ND, ids_N1, weights_N1, bank)
        now = time.perf_counter()
        best, first = max(best, count * bank.layout.bytes / (now - start)), (first + count) % bank.experts
        if now > end and number:
            break
    return best
