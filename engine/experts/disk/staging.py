"""Blocks for experts that are read, computed from and not kept: some of each layout, used again and again."""

from __future__ import annotations

from collections.abc import Sequence

from ....kernels import ExpertLayout
from ....kernels.packed import ExpertBank
from .reads import THREADS

BYTES, MOST, LEAST = 64 << 20, 16, 2  # of a layout's blocks together; how many
F32 = 4


def blocks(layout: ExpertLayout) -> int:
    """How many a layout has: enough for the disk to have several reads at a time, within BYTES if experts are small."""
    return max(LEAST, min(MOST, BYTES // layout.bytes))


def nbytes(layouts: Sequence[ExpertLayout], is_straight: bool) -> int:
    """RAM for reading. is_straight: nothing is converted on the way, which takes values of a matrix for each thread,
    and as much again while they are packed."""
    whole = sum(blocks(layout) * layout.bytes for layout in dict.fromkeys(layouts))
    largest = max(rows * cols for layout in layouts for rows, cols in map(layout.shape, layout.parts))
    return whole + (0 if is_straight else 2 * THREADS * F32 * largest)


class Staging:
    """The blocks of all layouts."""

    def __init__(self, layouts: Sequence[ExpertLayout]) -> None:
        self.banks = {layout: ExpertBank.on_a_page(layout, blocks(layout)) for layout in dict.fromkeys(layouts)}
        self.free = {layout: list(range(bank.experts)) for layout, bank in self.banks.items()}
