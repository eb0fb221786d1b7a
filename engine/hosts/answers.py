"""What a host answers: a row for each choice while it computes, or a sum for each row of the request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..bandwidth_model.network.wire_sizes import PIECE
from .messages.rows import WireFormat, Work
from .shelf import Shelf


class Piece(NamedTuple):
    """Rows float32 [N, hidden] of an answer, from number `first` on."""

    first: int
    rows_ND: Tensor


def answers(shelf: Shelf, work: Work, wire: WireFormat) -> Iterator[Piece]:
    """The pieces of an answer, each as soon as it is computed. Raises what reading and computing experts raise."""
    most = max(1, PIECE // wire.row(work.x_TD.shape[1]))
    if not work.is_summed:
        yield from _rows(shelf, work, most)
        return
    sums_TD = torch.zeros_like(work.x_TD)
    takes_weights = shelf.files.layouts[work.layer].weighs_input
    for first, rows_ND in _rows(shelf, work, most):
        if not takes_weights:
            assert work.weights_N is not None, "sums without weights"
            rows_ND *= work.weights_N[first : first + len(rows_ND), None]
        sums_TD.index_add_(0, work.at_N[first : first + len(rows_ND)].long(), rows_ND)
    for first in range(0, len(sums_TD), most):
        yield Piece(first, sums_TD[first : first + most])


def _rows(shelf: Shelf, work: Work, most: int) -> Iterator[Piece]:
    """A row for each choice, of whole experts at a time: an expert sees all of its rows at once."""
    takes_weights = shelf.files.layouts[work.layer].weighs_input
    for first, last in pieces(work.ids_N, most):
        taken_N = work.weights_N[first:last] if takes_weights and work.weights_N is not None else None
        yield Piece(first, shelf.rows(work.layer, work.x_TD, work.at_N[first:last], work.ids_N[first:last], taken_N))


def pieces(ids_N: Tensor, most: int) -> Iterator[tuple[int, int]]:
    """Choices [first, last) of whole experts, about `most` at a time; ids are sorted."""
    if len(ids_N) <= most:
        yield 0, len(ids_N)
        return
    _, counts = torch.unique_consecutive(ids_N, return_counts=True)
    first = last = 0
    for count in counts.tolist():
        if last > first and last + count - first > most:
            yield first, last
            first = last
        last += count
    yield first, last
