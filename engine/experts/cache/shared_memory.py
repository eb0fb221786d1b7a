"""Memory of a device that keys and values share with experts: pages from its beginning, places for experts behind them.

    | spare pages | pages that are open | places of experts ......................................... |
                                        the boundary, which moves between passes

A page has the keys and values of all layers side by side, each of the same bytes, its unit: so the pages of one layer
are every so many units (`stride`), and a kernel that is told numbers of units finds them where they always were. A
place begins at a multiple of an expert's bytes. So neither the addresses of tensors nor those of a graph ever change:
only which numbers are in use.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EXTENT = 8  # pages that are opened together


@dataclass(frozen=True)
class SharedRoom:
    """What is shared, in bytes. unit: of a page in one tensor, stride: how many tensors there are; pages: that may be
    open at most; spare: those before them, which belong to no sequence; experts: besides the pages."""

    unit: int
    stride: int
    pages: int
    spare: int
    experts: int

    @property
    def page(self) -> int:
        """Of a page in all layers."""
        return self.unit * self.stride

    @property
    def nbytes(self) -> int:
        return self.taken(self.pages) + self.experts

    @property
    def least(self) -> int:
        """Pages that are always open."""
        return min(EXTENT, self.pages)

    @property
    def numbers(self) -> range:
        """Of the pages, as kernels count them."""
        return range(self.spare * self.stride, (self.spare + self.pages) * self.stride, self.stride)

    def taken(self, open_pages: int) -> int:
        """Bytes before the boundary where so many pages are open."""
        return (self.spare + open_pages) * self.page


class SharedMemory:
    """The bytes themselves: reserved at once, and never more than was planned."""

    def __init__(self, room: SharedRoom, place: torch.device) -> None:
        self.room = room
        self.data = torch.empty(room.nbytes, dtype=torch.uint8, device=place)
        self.data[: room.taken(0)] = 0

    def rows(self, number: int) -> Tensor:
        """The pages of a tensor, as if the others lay between them: uint8 [units, bytes of one]."""
        room = self.room
        count = (room.spare + room.pages - 1) * room.stride + 1
        first = number * room.unit
        return self.data[first : first + count * room.unit].view(count, room.unit)

    def places(self, size: int) -> Tensor:
        """All places for experts of so many bytes, also those that pages are in: uint8 [places, size]."""
        return self.data[: self.room.nbytes // size * size].view(-1, size)

    def clear(self, first: int, last: int) -> None:
        """Pages that are opened, from how many on up to how many, begin as zeros: an expert's bytes could be read as
        numbers that are none."""
        self.data[self.room.taken(first) : self.room.taken(last)] = 0
