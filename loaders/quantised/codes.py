"""Integers of 4 bits as checkpoints pack them: taken apart into a byte each."""

from __future__ import annotations

import torch
from torch import Tensor

# Which row of eight an integer of 32 bits has in its fields, the lowest first, where AWQ packs it.
AWQ_FIELDS = (0, 2, 4, 6, 1, 3, 5, 7)


def pairs(packed: Tensor) -> Tensor:
    """Bytes [R, n], each with two neighbours of a row, the low half first: uint8 [R, 2 n]. Integers of 32 bits are four
    of them, lowest first."""
    data = packed.clone(memory_format=torch.contiguous_format).view(torch.uint8)
    return torch.stack([data & 15, data >> 4], dim=-1).flatten(1)


def eight_rows(packed: Tensor, interleaved: bool) -> Tensor:
    """Integers of 32 bits [R / 8, n], each with a column of eight rows: uint8 [R, n]."""
    data = packed.clone(memory_format=torch.contiguous_format).view(torch.uint8).view(*packed.shape, 4)
    found = torch.empty(len(packed), 8, packed.shape[1], dtype=torch.uint8)
    for field in range(8):
        byte = data[:, :, field // 2]
        found[:, AWQ_FIELDS[field] if interleaved else field] = byte >> 4 if field % 2 else byte & 15
    return found.flatten(0, 1)
