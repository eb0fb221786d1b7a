"""Integers of 4 bits as checkpoints pack them: taken apart into a byte each."""

from __future__ import annotations

import torch
from torch import Tensor

# Which output of eight an integer of 32 bits has in its fields, the lowest first, where AWQ packs it.
AWQ_FIELDS = (0, 2, 4, 6, 1, 3, 5, 7)


def pairs(packed: Tensor) -> Tensor:
    """Bytes [R, n], each with two neighbours of a row, the low half first: uint8 [R, 2 n]. Integers of 32 bits are four
    of them, lowest first."""
    data = packed.clone(memory_format=torch.contiguous_format).view(torch.uint8)
    return torch.stack([data & 15, data >> 4], dim=-1).flatten(1)


def eights(packed: Tensor, interleaved: bool) -> Tensor:
    """Integers of 32 bits [n, R / 8], each with eight neighbours of a row: uint8 [n, R], in their order."""
    fields = pairs(packed).view(len(packed), -1, 8)
    if interleaved:
        fields = fields[..., [AWQ_FIELDS.index(output) for output in range(8)]]
    return fields.flatten(1)
