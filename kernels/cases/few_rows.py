"""Weights for tests of kernels that are quick to pack: of some formats packing takes longer than their kernels do."""

from __future__ import annotations

from dataclasses import dataclass

from ..formats import Format
from ..packed import Matrix
from .case import RandomSource


@dataclass(frozen=True)
class FewRows(RandomSource):
    """Every matrix has so many rows of its own, over and over. A prime, so that no two rows whose places differ by what
    a kernel counts in (4, 16, 32, ...) are the same ones."""

    rows: int = 5

    def matrix(self, format: Format, rows: int, cols: int) -> Matrix:
        few = super().matrix(format, min(self.rows, rows), cols)
        return Matrix(format, rows, cols, few.data.repeat(-(-rows // self.rows), 1)[:rows].contiguous())
