"""`Entry`: one tensor of a file, of whatever kind: where its bytes lie and what they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ...kernels.ggml_blocks import FILE_BLOCKS


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: where its bytes start in the file, and how many there are. blocks: the format of rows that
    are a GGUF file's blocks; their dtype is uint8, and the shape counts weights."""

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    blocks: str = ""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row: of the last dimension."""
        cols = self.shape[-1] if self.shape else 1
        if self.blocks:
            kind = FILE_BLOCKS[self.blocks]
            return cols // kind.weights * kind.bytes
        return cols * self.dtype.itemsize
