"""Experts of RAM computed on the GPU: copied through two buffers, one filled while the other is computed from.

    side lane   copy 0 | copy 1 |           copy 2 |           copy 3
    main lane           compute 0 | compute 1 |     compute 2 |    compute 3

The chosen experts go in rising order, in pieces of as many as a buffer holds; a piece takes one copy for each run of
experts that lie side by side in RAM, and is computed by the op that computes a layer. Copy i + 2 waits until compute i
is done, compute i until copy i is, and the first copies of a layer for those who read the buffers before. Nothing comes
up to the host, and no map goes down: which expert is the n-th of the chosen is worked out from the choices on both
sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ..kernels import ExpertBank, ExpertLayout, Ops
from .lanes import Lane

PIECE = 64 << 20  # bytes of a buffer at most: a copy of 1 to 5 ms, over which what starts it does not show
PIECES = 4  # of a layer at least: while the first is copied there is nothing to compute


def piece_of(experts: int, size: int) -> int:
    """How many experts a buffer holds; of a layer's experts of so many bytes."""
    return max(1, min(PIECE // size, -(-experts // PIECES)))


def runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Rising numbers as (first, count) of neighbours."""
    start = 0
    for end in range(1, len(numbers) + 1):
        if end == len(numbers) or numbers[end] != numbers[end - 1] + 1:
            yield numbers[start], end - start
            start = end


def chosen_numbers(local_TK: Tensor, experts: int) -> list[int]:
    """The different numbers among choices in a bank of so many experts, rising; -1 is none of it."""
    counts = torch.bincount(local_TK.flatten() + 1, minlength=experts + 1)
    found: list[int] = counts[1:].nonzero().flatten().tolist()
    return found


def ranks(ids_TK: Tensor, in_ram_E: Tensor) -> Tensor:
    """Of each choice, its expert's place among the chosen experts in RAM in rising order, or -1: int32 [tokens,
    choices]. in_ram: int32 [experts], 1 for those in RAM."""
    ids = ids_TK.long()
    chosen_E = torch.zeros_like(in_ram_E).index_fill_(0, ids.flatten(), 1).mul_(in_ram_E)
    rank_E = chosen_E.cumsum(0, dtype=torch.int32).mul_(chosen_E).sub_(1)
    return rank_E[ids]


class Ring:
    """The two buffers, on the device of `place`, and who uses them next."""

    def __init__(self, layout: ExpertLayout, piece: int, ops: Ops, place: torch.device, main: Lane, side: Lane) -> None:
        self.layout = layout
        self.piece = piece
        self.ops = ops
        self.main, self.side = main, side
        self.buffers = [ExpertBank.empty(layout, piece, str(place)).data for _ in range(2)]
        self.free = [main.mark(), main.mark()]
        self.turn = 0

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers)

    def add(
        self, y_TD: Tensor, x_TD: Tensor, ranks_TK: Tensor, weights_TK: Tensor, bank: ExpertBank, numbers: Sequence[int]
    ) -> None:
        """Adds to y the weighted sums of the experts with these rising numbers in `bank`, in the main lane.

        ranks: the place of a choice's expert in `numbers`; -1, or one beyond their end, for others.
        """
        pieces = [numbers[at : at + self.piece] for at in range(0, len(numbers), self.piece)]
        filled = [self._copy(bank, pieces[0])] if pieces else []
        for index, piece in enumerate(pieces):
            if index + 1 < len(pieces):
                filled.append(self._copy(bank, pieces[index + 1]))
            buffer, ready = filled[index]
            self.main.wait(ready)
            held = ExpertBank(self.layout, self.buffers[buffer][: len(piece)])
            self.main.do(partial(self._compute, y_TD, x_TD, ranks_TK, weights_TK, held, index * self.piece))
            self.free[buffer] = self.main.mark()

    def _copy(self, bank: ExpertBank, piece: Sequence[int]) -> tuple[int, object]:
        """Fills the next buffer: its number, and the point at which it is full."""
        buffer, self.turn = self.turn, 1 - self.turn
        self.side.wait(self.free[buffer])
        self.side.do(partial(fill, self.buffers[buffer], bank, piece))
        return buffer, self.side.mark()

    def _compute(
        self, y_TD: Tensor, x_TD: Tensor, ranks_TK: Tensor, weights_TK: Tensor, held: ExpertBank, first: int
    ) -> None:
        """Adds what the experts of one piece give; the piece begins with rank `first`."""
        here_TK = (ranks_TK >= first) & (ranks_TK < first + held.experts)
        local_TK = torch.where(here_TK, ranks_TK - first, -1)
        self.ops.gated_add_(y_TD, self.ops.experts(x_TD, local_TK, weights_TK, held))


def fill(target: Tensor, bank: ExpertBank, numbers: Sequence[int]) -> None:
    """Copies experts side by side, one copy a run."""
    at = 0
    for first, count in runs(numbers):
        target[at : at + count].copy_(bank.data[first : first + count], non_blocking=True)
        at += count
