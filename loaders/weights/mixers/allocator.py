"""Makes empty weights on one of torch's devices; `meta` gives shapes without memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ....kernels import Format
from ....kernels.packed import Matrix, Stacked

FormatOf = Callable[[str], Format]  # by the role of a tensor in its layer


class Allocator:
    """Common weights on `device`."""

    def __init__(self, device: str) -> None:
        self.device = device

    def vector(self, *size: int) -> Tensor:
        """float32 [size]."""
        return torch.empty(size, dtype=torch.float32, device=self.device)

    def matrix(self, format: Format, rows: int, cols: int) -> Matrix:
        return Matrix.empty(format, rows, cols, self.device)

    def stacked(self, formats: Sequence[Format], rows: Sequence[int], cols: int) -> Stacked:
        return Stacked.empty(formats, rows, cols, self.device)
