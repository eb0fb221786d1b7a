"""`Entry`: one tensor of a file, of whatever kind: where its bytes lie and what they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ...kernels import FORMATS, Format
from ...kernels.blocks.ggml import FILE_BLOCKS


class Packed(Protocol):
    """A weight that several tensors hold together."""

    @property
    def format(self) -> Format:
        """The format whose rows hold it, nothing rounded."""

    def rows(self, first: int, count: int) -> Tensor:
        """Rows [first, first + count), of all dimensions but the last, packed: uint8 [count, row_bytes]."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: where its bytes start in the file, and how many there are. blocks: the format of rows that
    are a GGUF file's blocks; their dtype is uint8, and the shape counts weights. packed: several tensors that are one
    weight, in the format `blocks`; bytes are those of packed rows, and only they are read."""

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    blocks: str = ""
    packed: Packed | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row: of the last dimension."""
        cols = self.shape[-1] if self.shape else 1
        if self.packed is not None:
            return FORMATS[self.blocks].row_bytes(cols)
        if self.blocks:
            kind = FILE_BLOCKS[self.blocks]
            return cols // kind.weights * kind.bytes
        return cols * self.dtype.itemsize
