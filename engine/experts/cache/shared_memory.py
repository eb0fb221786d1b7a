"""Memory of a device that keys and values share with experts: pages from the beginning of its parts, places for experts
behind them.

    | spare pages | pages that are open | places of experts ............................ |
                                        the boundary, which moves between passes

A page has the keys and values of all layers. A kernel finds a tensor's rows of it by the page's number times their
bytes, the tensor's unit, and all tensors have the same numbers. So tensors with one unit lie side by side, some of them
(`stride`, the same for all units) in one part of the memory, page by page; a model whose rows have several sizes has
several parts, each with its own boundary. A place begins at a multiple of an expert's bytes (`zones.py`). So neither
the addresses of tensors nor those of a graph ever change: only which numbers are in use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd

import torch
from torch import Tensor

from ....kernels.packed import PAGE
from .zones import Room, guaranteed, waste

EXTENT = 8  # pages that are opened together


@dataclass(frozen=True)
class SharedRoom:
    """What is shared, in bytes. units: of a page in each tensor; pages: that may be open at most; spare: those before
    them, which belong to no sequence; experts: besides the pages; sizes: that experts have, each once."""

    units: tuple[int, ...]
    pages: int
    spare: int
    experts: int
    sizes: tuple[int, ...]

    @classmethod
    def of_experts(cls, nbytes: int, sizes: Sequence[int]) -> SharedRoom:
        """Without pages, for any experts that take so many bytes."""
        each = tuple(sorted(set(sizes)))
        return cls(units=(), pages=0, spare=0, experts=nbytes + moving(nbytes, each), sizes=each)

    @cached_property
    def stride(self) -> int:
        """Tensors of a part, which is how far the numbers of two pages are apart."""
        return gcd(*Counter(self.units).values()) or 1

    @cached_property
    def parts(self) -> tuple[int, ...]:
        """The unit of each part."""
        return tuple(unit for unit, count in Counter(self.units).items() for _ in range(count // self.stride))

    @cached_property
    def begins(self) -> tuple[int, ...]:
        """The first byte of each part."""
        return tuple(self._pages_of(self.parts[:number]) for number in range(len(self.parts)))

    @property
    def page(self) -> int:
        """Of a page in all layers."""
        return sum(self.units)

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
        """Bytes of so many pages, and of the spare ones."""
        return (self.spare + open_pages) * self.page

    def begin(self, tensor: int) -> int:
        """The first byte of a tensor."""
        unit = self.units[tensor]
        part, place = divmod(self.units[:tensor].count(unit), self.stride)
        return self.begins[self.parts.index(unit) + part] + place * unit

    def opened(self, first: int, last: int) -> list[Room]:
        """The bytes of pages from one on up to another one, in each part; from -1 on: of the spare ones too."""
        at = [0 if first < 0 else self.spare + first, self.spare + last]
        return [
            (begin + at[0] * self.stride * unit, begin + at[1] * self.stride * unit)
            for begin, unit in zip(self.begins, self.parts, strict=True)
        ]

    def rooms(self, open_pages: int) -> list[Room]:
        """Where experts may lie while so many pages are open."""
        first = [last for _, last in self.opened(-1, open_pages)] or [0]
        return [room for room in zip(first, (*self.begins[1:], self.nbytes), strict=True) if room[0] < room[1]]

    def budget(self, open_pages: int) -> int:
        """Bytes of experts that always find their places then, whichever they are."""
        return guaranteed(self.rooms(open_pages), self.sizes)

    def _pages_of(self, parts: Sequence[int]) -> int:
        return (self.spare + self.pages) * self.stride * sum(parts)


def moving(nbytes: int, sizes: Sequence[int]) -> int:
    """Bytes besides so many, so that experts of several sizes, each once, find places in them whichever they are."""
    return len(sizes) * waste(sizes) if nbytes and sizes else 0


class SharedMemory:
    """The bytes themselves: reserved at once, and never more than was planned. place: None for RAM from a page's begin
    on, so that files can be read right into places of whole pages."""

    def __init__(self, room: SharedRoom, place: torch.device | None) -> None:
        self.room = room
        memory = torch.empty(room.nbytes + (PAGE if place is None else 0), dtype=torch.uint8, device=place)
        first = -memory.data_ptr() % PAGE if place is None else 0
        self.data = memory[first : first + room.nbytes]
        self.clear(-1, 0)

    def rows(self, tensor: int) -> Tensor:
        """The pages of a tensor, as if the others lay between them: uint8 [units, bytes of one]."""
        room = self.room
        unit, first = room.units[tensor], room.begin(tensor)
        count = (room.spare + room.pages - 1) * room.stride + 1
        return self.data[first : first + count * unit].view(count, unit)

    def places(self, size: int) -> Tensor:
        """All places for experts of so many bytes, also those that pages or others are in: uint8 [places, size]."""
        return self.data[: self.room.nbytes // size * size].view(-1, size)

    def clear(self, first: int, last: int) -> None:
        """Pages that are opened, from how many on up to how many, begin as zeros: an expert's bytes could be read as
        numbers that are none."""
        for begin, end in self.room.opened(first, last):
            self.data[begin:end] = 0
