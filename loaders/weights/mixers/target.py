"""Where rows of a checkpoint tensor go: `Piece` and `Target`.

A checkpoint tensor is seen as rows of its last dimension. A target says which of its rows go into which packed matrix,
so that q, k and v meet in one matrix and a fused expert tensor is cut into experts without a copy of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ....kernels import FORMATS
from ....kernels.packed import Matrix

Change = Literal["", "plus one", "minus exp", "over root", "whole numbers"]


@dataclass(frozen=True)
class Piece:
    """Rows first, first + step, ... of a checkpoint tensor, and the matrix that they fill; with a `column` the matrix
    is stored the other way round: columns column, column + step, ... of rows [first, first + into.cols)."""

    first: int
    into: Matrix
    column: int | None = None
    step: int = 1


@dataclass(frozen=True)
class Target:
    """The shape that a checkpoint tensor must have, where its rows go, and which choice of format covers it."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    group: str = ""  # the field of `Formats` that its format comes from; "": always float32, or bytes as they are
    places: tuple[str, ...] = ()  # of `Formats.own`, of all that it fills
    turned_places: tuple[str, ...] = ()  # those that are stored the other way round: no block format is turned as it is
    heads: int = 0  # of queries or keys; rows of other files may have another order within a head
    change: Change = ""  # what becomes of its values, which are then float32: a norm that counts from 1, a logarithm

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


Named = Iterator[tuple[str, Target]]


def whole(matrix: Matrix, group: str = "", place: str = "") -> Target:
    """A tensor that is one matrix."""
    return Target((matrix.rows, matrix.cols), (Piece(0, matrix),), group, (place,) if place else ())


def deep(values: Tensor, is_deep: bool) -> Target:
    """The float32 taps of a convolution of each channel [channels, taps], stored as [channels, 1, taps] or flat."""
    channels, taps = values.shape
    shape = (channels, 1, taps) if is_deep else (channels, taps)
    return Target(shape, (Piece(0, Matrix(FORMATS["f32"], channels, taps, values.view(torch.uint8))),))


def vector(values: Tensor, change: Change = "") -> Target:
    """A float32 vector is a matrix of one row, so that it is filled like every other."""
    row = Matrix(FORMATS["f32"], 1, values.numel(), values.view(1, -1).view(torch.uint8))
    return Target((values.numel(),), (Piece(0, row),), change=change)
