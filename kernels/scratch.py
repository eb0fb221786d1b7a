"""What GPU ops take besides their tensors, for who plans memory: to be read where Triton is not installed."""

from __future__ import annotations

GPU_EXPERT_BYTES = 1 << 29  # for every pair's output of `experts`, in float32; a longer prompt goes through in chunks
UNPACKED_BYTES = 1 << 28  # of bf16 for the weights of as many experts as fit, one at least
UNPACKED_FROM = 128  # tokens of an expert: a tile more of them unpacks every weight again


def unpacks(pairs: int, experts: int) -> bool:
    """Whether experts are unpacked to bf16 before they are multiplied; pairs of a token and one of so many experts."""
    return pairs >= UNPACKED_FROM * experts


def unpacked_experts(weights: int, experts: int) -> int:
    """How many of a bank's experts of so many weights each are unpacked at a time."""
    return min(experts, max(1, UNPACKED_BYTES // (2 * weights)))


def unpacked_bytes(weights: int, experts: int, pairs: int) -> int:
    """Of the buffer for that, in a pass with so many pairs."""
    return 2 * weights * unpacked_experts(weights, experts) if unpacks(pairs, experts) else 0
