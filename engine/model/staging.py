"""The inputs of a pass as one block of bytes: written into one pinned buffer, sent up by one copy, taken apart there.

    [ token ids, or their rows of the embedding | slots | rows | slots of each kind of windows ]
    [ positions | starts | contexts | tables | tables of each kind of windows
      | slots of states, and what pieces of sequences have ] [ padding ]

Seven small tensors sent one by one cost a launch and a staging copy each, about as much as all their bytes together do
once. Every part begins at a multiple of ALIGN bytes, as a tensor of its own does, so that kernels load it alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.decoder_layer import Pages, Piece, Places
from ..devices.device import Event
from ..ledger.pass_bytes import Span
from .batch import Inputs

ALIGN = 64


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of a pass: T new tokens of S sequences, page tables of so many pages, rows whose logits are wanted. hidden: of
    embedding rows that were looked up, 0 where token ids go instead. is_padded: with a mark for every token.
    has_states: with a slot of state for every sequence; cuts: pieces of sequences, behind which states are kept.
    windows: kinds of layers over a window that have pages of their own."""

    tokens: int
    sequences: int
    pages: int
    rows: int
    hidden: int = 0
    is_padded: bool = False
    has_states: bool = False
    cuts: int = 0
    windows: int = 0

    @property
    def lengths(self) -> dict[torch.dtype, list[int]]:
        """Elements of every part, by type."""
        T, S = self.tokens, self.sequences
        found = {
            torch.int64: [T, self.rows, *[T] * self.windows, *([] if self.hidden else [T])],
            torch.int32: [T, S + 1, S, S * self.pages, *[S * self.pages] * self.windows],
        }
        if self.has_states:
            found[torch.int32] += [S, *[1, 2, 1] * self.cuts]  # of a piece its slot, starts and context
        if self.hidden:
            found[torch.float32] = [T * self.hidden]
        if self.is_padded:
            found[torch.bool] = [T]
        return found

    @property
    def nbytes(self) -> int:
        """Of the block."""
        return _regions(self)[-1].end


class Region(NamedTuple):
    """A run of parts of one type: its bytes in the block, and elements of parts and of gaps in turns."""

    dtype: torch.dtype
    start: int
    end: int
    lengths: list[int]


@lru_cache(maxsize=64)  # decode steps have the same shapes again and again
def _regions(shape: Shape) -> tuple[Region, ...]:
    """The block of a shape."""
    found, at = [], 0
    for dtype, lengths in shape.lengths.items():
        unit = ALIGN // dtype.itemsize
        both = [n for length in lengths for n in (length, -length % unit)]
        found.append(Region(dtype, at, at + sum(both) * dtype.itemsize, both))
        at = found[-1].end
    return tuple(found)


def shape_of(inputs: Inputs) -> Shape:
    """The shape of a pass as it is."""
    sequences, pages = inputs.places.tables_SM.shape
    hidden = 0 if inputs.x_TD is None else inputs.x_TD.shape[1]
    return Shape(
        tokens=len(inputs.ids_T), sequences=sequences, pages=pages, rows=len(inputs.rows), hidden=hidden,
        has_states=inputs.places.states_S is not None, cuts=len(inputs.places.pieces),
        windows=len(inputs.places.windows),
    )  # fmt: skip


class Parts(NamedTuple):
    """Views of a block. ids are None where rows of the embedding go instead; padding: bool [T], or None; cuts: of every
    piece its slot, starts and context."""

    ids_T: Tensor | None
    x_TD: Tensor | None
    places: Places
    rows: Tensor
    padding_T: Tensor | None
    cuts: list[tuple[Tensor, Tensor, Tensor]]

    def write(self, inputs: Inputs) -> None:
        """Writes a pass of this shape."""
        to, of = self.places, inputs.places
        if self.ids_T is not None:
            self.ids_T.copy_(inputs.ids_T)
        if self.x_TD is not None:
            assert inputs.x_TD is not None, "a pass whose embedding rows were not looked up"
            self.x_TD.copy_(inputs.x_TD)
        self.rows.copy_(inputs.rows)
        to.positions_T.copy_(of.positions_T)
        to.slots_T.copy_(of.slots_T)
        to.tables_SM.copy_(of.tables_SM)
        for there, here in zip(to.windows, of.windows, strict=True):
            there.slots_T.copy_(here.slots_T)
            there.tables_SM.copy_(here.tables_SM)
        to.starts_S1.copy_(of.starts_S1)
        to.contexts_S.copy_(of.contexts_S)
        if to.states_S is not None:
            assert of.states_S is not None, "a pass without slots of states"
            to.states_S.copy_(of.states_S)
        for cut, piece in zip(self.cuts, of.pieces, strict=True):
            for to_piece, of_piece in zip(cut, piece.tensors, strict=True):
                to_piece.copy_(of_piece)

    def inputs(self, ids_T: Tensor, spans: tuple[Span, ...], pieces: Sequence[Piece] = ()) -> Inputs:
        """The pass; `ids_T` serves where the block has none, `pieces` are those of the pass in RAM."""
        ids_T = ids_T if self.ids_T is None else self.ids_T
        places = self.places
        if pieces:
            moved = tuple(piece.at(*cut) for piece, cut in zip(pieces, self.cuts, strict=True))
            places = replace(places, pieces=moved)
        return Inputs(ids_T=ids_T, places=places, spans=spans, rows=self.rows, x_TD=self.x_TD)


def parts(block: Tensor, shape: Shape) -> Parts:
    """Takes a block (uint8) apart."""
    flat = [block[r.start : r.end].view(r.dtype).split_with_sizes(r.lengths)[::2] for r in _regions(shape)]
    (slots, rows, *ids), (positions, starts, contexts, tables, *states), *more = flat
    count, size = shape.windows, (shape.sequences, shape.pages)
    windows = tuple(Pages(*one) for one in zip(ids[:count], [t.view(size) for t in states[:count]], strict=True))
    ids, states = ids[count:], states[count:]
    places = Places(
        positions_T=positions,
        slots_T=slots,
        tables_SM=tables.view(size),
        starts_S1=starts,
        contexts_S=contexts,
        states_S=states[0] if shape.has_states else None,
        windows=windows,
    )
    cuts = list(zip(states[1::3], states[2::3], states[3::3], strict=True))
    x_TD = more[0][0].view(shape.tokens, shape.hidden) if shape.hidden else None
    padding_T = more[-1][0] if shape.is_padded else None
    return Parts(ids_T=ids[0] if ids else None, x_TD=x_TD, places=places, rows=rows, padding_T=padding_T, cuts=cuts)


class StagingBuffer:
    """The pinned buffer for passes of up to `largest`, to the device of `place`, and the point at which its last copy
    was done: nothing is written before that."""

    def __init__(self, place: torch.device, largest: Shape) -> None:
        self.place = place
        self.host = torch.zeros(largest.nbytes, dtype=torch.uint8, pin_memory=place.type == "cuda")
        self.event = Event(place)
        self.shape, self.parts = largest, parts(self.host, largest)

    @property
    def nbytes(self) -> int:
        return self.host.nbytes

    def open(self, shape: Shape) -> Parts:
        """The parts of the buffer for a pass of this shape, which may be written now."""
        if shape != self.shape:
            assert shape.nbytes <= self.nbytes, f"{shape} takes {shape.nbytes} bytes, the buffer has {self.nbytes}"
            self.shape, self.parts = shape, parts(self.host, shape)
        self.event.wait()
        return self.parts

    def send(self, to: Tensor | None = None) -> Tensor:
        """Sends up what was written, into `to` or new memory there."""
        size = self.shape.nbytes
        there = torch.empty(size, dtype=torch.uint8, device=self.place) if to is None else to
        self.copy(there, self.host[:size])
        self.event.set()
        return there

    def copy(self, there: Tensor, here: Tensor) -> None:
        """One copy in the device's stream."""
        there.copy_(here, non_blocking=True)

    def take(self, inputs: Inputs) -> Inputs:
        """A pass, on the device; token ids whose rows were looked up stay where they are."""
        shape = shape_of(inputs)
        self.open(shape).write(inputs)
        return parts(self.send(), shape).inputs(inputs.ids_T, inputs.spans, inputs.places.pieces)
