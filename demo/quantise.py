"""What q8_0, q4_0 and bfloat16 storage does to weights: the stored values, back in float32.

Used to measure what the formats cost in perplexity and, if needed, to train a model so that its experts bear q4_0.
Groups are 32 values along a matrix's input dimension, as in the engine's own formats.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 32


def q4_0(weight: Tensor) -> Tensor:
    """4-bit values around a float16 scale; the value of largest magnitude becomes -8 scales."""
    groups = weight.reshape(*weight.shape[:-1], -1, GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = (torch.where(-low >= high, low, high) / -8).half().float()
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    steps = torch.floor(groups * inverse + 8.5).clamp(0, 15)
    return ((steps - 8) * scale).flatten(-2)


def q8_0(weight: Tensor) -> Tensor:
    """8-bit values around a float16 scale of the largest magnitude / 127."""
    groups = weight.reshape(*weight.shape[:-1], -1, GROUP)
    scale = (groups.abs().amax(-1, keepdim=True) / 127).half().float()
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    return (torch.round(groups * inverse) * scale).flatten(-2)


def bfloat16(weight: Tensor) -> Tensor:
    return weight.bfloat16().float()


def straight_through_q4_0(weight: Tensor) -> Tensor:
    """The q4_0 values in the forward pass, and the gradient of doing nothing in the backward pass."""
    difference: Tensor = q4_0(weight) - weight
    return weight + difference.detach()
