"""Experts of RAM computed on the GPU: copied through two buffers, one filled while the other is computed from.

    side stream   copy 0 | copy 1 |           copy 2 |           copy 3            | copy 0' ...
    main stream           compute 0 | compute 1 |     compute 2 |    compute 3 | attention ...

Chosen experts go in rising order, in pieces that fit a buffer; a piece takes one copy for each run of experts that lie
side by side in RAM (two where a registration of the driver ends between them), and is computed by the op that computes
a layer. Copy i + 2 waits until compute i is done, compute i until copy i is, and the first copies of a layer for those
who read the buffers before. Nothing comes up to the host, and no map goes down: where an expert lies in a buffer is
worked out from the choices on both sides.

Where nearly all experts are chosen, the first pieces of the next layer (0' above) are copied before its choices are
known, whole. A piece by number has every expert at a place that its number gives, copied or not: so the same op gets
the same choices either way, and gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels import ExpertLayout, Ops
from ...kernels.packed import ExpertBank
from ..devices.streams import Stream
from ..ledger.passes import GPU_HBM, H2D
from ..ledger.timers import Timers, wait

PIECE = 64 << 20  # bytes of a buffer at most: a copy of 1 to 5 ms, over which what starts it does not show
PIECES = 4  # of a layer at least: while the first is copied there is nothing to compute
PREFETCH_PIECES = 2  # pieces of a layer that may be copied before its choices: as many as there are buffers


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


class Run(NamedTuple):
    """Experts that lie side by side in RAM: from `number` on, `experts` of them, to place `at` of a buffer."""

    at: int
    number: int
    experts: int


class Piece(NamedTuple):
    """What shares a buffer: `size` places from `first` on, as choices are numbered, and what is copied there."""

    first: int
    size: int
    runs: tuple[Run, ...]


def by_number(numbers: Sequence[int], piece: int, experts: int) -> list[Piece]:
    """Pieces of a bank of so many experts, each at its number: which piece an expert is in does not depend on the
    others."""
    found = []
    for whole in cut(piece, experts):
        mine = [n for n in numbers if whole.first <= n < whole.first + whole.size]
        if mine:
            found.append(whole._replace(runs=tuple(Run(n - whole.first, n, count) for n, count in runs(mine))))
    return found


def cut(piece: int, experts: int) -> list[Piece]:
    """All experts of a bank, by number."""
    sizes = [(first, min(piece, experts - first)) for first in range(0, experts, piece)]
    return [Piece(first, size, (Run(0, first, size),)) for first, size in sizes]


def chosen_numbers(local_TK: Tensor, experts: int) -> list[int]:
    """The different numbers among choices in a bank of so many experts, rising; -1 is none of it."""
    counts = torch.bincount(local_TK.flatten() + 1, minlength=experts + 1)
    found: list[int] = counts[1:].nonzero().flatten().tolist()
    return found


class Filled(NamedTuple):
    """A buffer that is being filled with a piece of a bank, and the point at which it is full."""

    bank: ExpertBank
    piece: Piece
    buffer: int
    ready: object

    def serves(self, bank: ExpertBank, piece: Piece) -> bool:
        """Whether all that a piece would copy is there, at its place."""
        mine = self.piece
        is_same = self.bank is bank and mine.first == piece.first and mine.size == piece.size
        return is_same and all(run.at == run.number - piece.first for run in piece.runs)


Cuts = Callable[[ExpertBank], Sequence[int]]


def no_cuts(bank: ExpertBank) -> Sequence[int]:
    """Of memory that is registered as a whole, or not at all."""
    return ()


class Ring:
    """The two buffers, on the device of `place`, and who uses them next. layout: of the largest experts; those of
    other layers lie in the buffers by their own. cuts: the experts of a bank at which a copy must end
    (`memory/pinned.py`). among: how many experts a layer has."""

    def __init__(
        self,
        layout: ExpertLayout,
        piece: int,
        ops: Ops,
        place: torch.device,
        main: Stream,
        side: Stream,
        timers: Timers | None = None,
        here: str = GPU_HBM,
        cuts: Cuts = no_cuts,
        among: int = 0,
    ) -> None:
        self.layout, self.cuts, self.among = layout, cuts, among
        self.piece = piece
        self.ops = ops
        self.main, self.side = main, side
        self.timers, self.here = timers or Timers(), here  # the main stream's spans are the clock's, of tier `here`
        self.copies = self.timers.beside(side)
        self.buffers = [ExpertBank.empty(layout, piece, str(place)).data for _ in range(2)]
        self.held: dict[tuple[int, int, ExpertLayout], ExpertBank] = {}
        self.free = [main.record(), main.record()]
        self.turn = 0  # the buffer that is free first
        self.prefetched: list[Filled] = []

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers)

    def add(
        self,
        y_TD: Tensor,
        x_TD: Tensor,
        places_TK: Tensor,
        weights_TK: Tensor,
        bank: ExpertBank,
        pieces: Sequence[Piece],
    ) -> None:
        """Adds to y the weighted sums of the experts of these pieces of `bank`, in the main stream.

        places: of a choice's expert, as the pieces are numbered; -1, or one beyond their end, for others.
        """
        prefetched, self.prefetched = self.prefetched, []
        filled = None
        for piece, following in zip(pieces, [*pieces[1:], None], strict=True):
            filled = filled or self._filled(prefetched, bank, piece, None)
            coming = following and self._filled(prefetched, bank, following, filled.buffer)
            self.timers.span(self.here)
            self.main.wait(filled.ready)
            self.timers.span(wait(H2D))
            held = self._held(filled.buffer, bank, piece.size)
            self.main.do(partial(self._compute, y_TD, x_TD, places_TK, weights_TK, held, piece.first))
            self.free[filled.buffer] = self.main.record()
            filled = coming

    def _held(self, buffer: int, bank: ExpertBank, size: int) -> ExpertBank:
        """The first experts of a buffer as a bank: one for each number and layout, with what the kernels keep of it."""
        key = buffer, size, bank.layout
        if key not in self.held:
            self.held[key] = ExpertBank(bank.layout, self._places(buffer, bank)[:size], self.among)
        return self.held[key]

    def fetch(self, bank: ExpertBank) -> None:
        """Copies the first experts of a bank, `prefetch_experts` of them, before anyone chose them: into either buffer
        as soon as it is free."""
        self.prefetched, held = [], None
        for piece in cut(self.piece, bank.experts)[:PREFETCH_PIECES]:
            self.prefetched.append(self._fill(bank, piece, held))
            held = self.prefetched[-1].buffer

    def fetched(self, bank: ExpertBank) -> int:
        """How many experts of a bank were copied before they were chosen, and are there."""
        return sum(filled.piece.size for filled in self.prefetched if filled.bank is bank)

    def forget(self) -> None:
        """What was copied early will not be asked for. A buffer is filled again after that, in the order of the side
        stream."""
        self.prefetched = []

    def _filled(self, prefetched: Sequence[Filled], bank: ExpertBank, piece: Piece, held: int | None) -> Filled:
        """The piece in a buffer: copied early, or now."""
        there = next((filled for filled in prefetched if filled.serves(bank, piece)), None)
        return there or self._fill(bank, piece, held)

    def _fill(self, bank: ExpertBank, piece: Piece, held: int | None) -> Filled:
        """Fills a buffer: not the one that is `held` for a piece that is still to be computed, else the one that is
        free first."""
        buffer = self.turn if held is None else 1 - held
        self.turn = 1 - buffer
        self.side.wait(self.free[buffer])
        self.copies.span(self.here if self.copies is self.timers.main else None)
        self.side.do(partial(fill, self._places(buffer, bank), bank, piece, self.cuts(bank)))
        self.copies.span(H2D)
        return Filled(bank, piece, buffer, self.side.record())

    def _places(self, buffer: int, bank: ExpertBank) -> Tensor:
        """A buffer as experts of a bank lie in it: uint8 [piece, bytes of one]."""
        size = bank.layout.bytes
        return self.buffers[buffer].view(-1)[: self.piece * size].view(self.piece, size)

    def _compute(
        self, y_TD: Tensor, x_TD: Tensor, places_TK: Tensor, weights_TK: Tensor, held: ExpertBank, first: int
    ) -> None:
        """Adds what the experts of one piece give; the piece begins with place `first`."""
        here_TK = (places_TK >= first) & (places_TK < first + held.experts)
        local_TK = torch.where(here_TK, places_TK - first, -1)
        self.ops.gated_add_(y_TD, self.ops.experts(x_TD, local_TK, weights_TK, held))


def prefetch_experts(piece: int, experts: int) -> int:
    """How many experts of a bank `Ring.fetch` copies."""
    return min(PREFETCH_PIECES * piece, experts)


def within(runs: Iterable[Run], cuts: Sequence[int]) -> Iterator[Run]:
    """Runs that none of the experts `cuts` lies inside of: each is where another registration begins."""
    for run in runs:
        ends = [cut for cut in cuts if run.number < cut < run.number + run.experts]
        for first, end in pairwise([run.number, *ends, run.number + run.experts]):
            yield Run(run.at + first - run.number, first, end - first)


def fill(target: Tensor, bank: ExpertBank, piece: Piece, cuts: Sequence[int] = ()) -> None:
    """Copies the experts of a piece to their places, one copy a run; it ends at each of `cuts`."""
    for at, number, count in within(piece.runs, cuts):
        target[at : at + count].copy_(bank.data[number : number + count], non_blocking=True)
