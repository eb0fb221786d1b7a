"""The cache of experts as a layer sees it: which of its choices are in VRAM, which come now, which the CPU computes.

The policy and the count are those of a replay (`policies/residents.py`); here its answers become copies and places. A
policy is asked about tokens that are generated. Prompts use what is there, and move nothing: of hundreds of tokens
nearly all experts are chosen, which says nothing about those to come.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....kernels import ExpertLayout
from ....kernels.packed import ExpertBank
from ...devices.streams import Stream
from ...ledger.timers import Spans
from ...policies.between import Resizable, Resize
from ...policies.protocol import NOTHING, Key, Moves, Policy, Shape
from ..backend import Moved
from .arrivals import Arrivals
from .late_answers import LateAnswers
from .ruled_cache import RuledCache
from .shared_memory import SharedMemory, SharedRoom
from .slots import ABSENT, Slots
from .zones import Room


class Use(NamedTuple):
    """What a layer finds. here: int32 [experts], the place of those that can be read at once, -1 for others; fetched:
    the same of those that are on their way, and can be read when `ready` has come. leaving, coming: what goes and comes
    behind the layer."""

    here: Tensor
    fetched: Tensor | None
    ready: Any
    leaving: Sequence[Key]
    coming: Sequence[Key]


class ExpertCache(RuledCache):
    """layouts, banks: of each layer, all experts in RAM. budget: bytes of the places, device: where they are. shared:
    they lie in memory that pages are in too; the budget is then what no page is in when the cache of keys and values is
    full, and grows with what it leaves, of a policy that can do with that."""

    def __init__(
        self,
        policy: Policy,
        budget: int,
        layers: Sequence[int],
        layouts: Sequence[ExpertLayout],
        banks: Sequence[ExpertBank],
        device: torch.device,
        streams: tuple[Stream, Stream],
        spans: Spans | None = None,
        shared: SharedMemory | None = None,
    ) -> None:
        shape, self.shared, self.unbooked = shape_of(layouts, banks), shared, 0
        if shared is None:
            super().__init__(policy, budget, layers, shape)
            memory = SharedMemory(SharedRoom.of_experts(min(budget, shape.nbytes), shape.expert_bytes), device)
            self.slots = Slots(shape, layouts, memory, memory.room.rooms(0), self.resident)
        else:
            pages = shared.room.least if isinstance(policy, Resizable) else shared.room.pages
            super().__init__(policy, budget_of(shared.room, shape, pages), layers, shape)
            self.slots = Slots(shape, layouts, shared, shared.room.rooms(pages), self.resident)
        self.arrivals = Arrivals(self.slots, banks, *streams, spans)
        streams[0].wait(self.arrivals.bring(self.resident))
        self.late: LateAnswers | None = None

    def share(self, first: int, last: int) -> None:
        """Between two passes: instead of the `first` pages so many are open from now on. What lay where they are
        moves, as far as the policy keeps it, and what was given for them before is done first."""
        assert self.shared is not None, "pages of a cache that nothing is shared with"
        if last > first:
            self.arrivals.all_come()
        budget = budget_of(self.shared.room, self.shape, last)
        if isinstance(self.policy, Resizable):
            if budget != self.budget:
                self.settle()
            self._resize(budget, self.shared.room.rooms(last))
        if last > first:
            self.arrivals.main.do(partial(self.shared.clear, first, last))

    def _resize(self, budget: int, rooms: Sequence[Room]) -> None:
        """Experts lie in these rooms from now on, for so many bytes."""
        moves = self.told(Resize(budget)) if budget != self.budget else NOTHING
        for key in moves.evict:
            self._leave(key)
        self.arrivals.move(self.slots.keep(rooms))
        self.bring_ahead(moves._replace(evict=()))

    def settle(self) -> None:
        if self.late is not None:
            self.late.settle()
            self.carry_out()

    def bring_ahead(self, moves: Moves) -> None:
        for key in moves.evict:
            self._leave(key)
        if moves.prefetch:
            self.arrivals.bring(moves.prefetch)
            self.unbooked += self.size_of(moves.prefetch)

    def begin(self, generating: int, is_graph: bool = False) -> None:
        if self.late is not None:
            self.late.begin(is_graph)
            self.carry_out()
        super().begin(generating, is_graph)

    def answer_late(self) -> None:
        """From now on the policy is asked when a pass is over, since passes are graphs."""
        self.late = LateAnswers(self.residents, self.counts)

    def carry_out(self) -> None:
        """What a late answer said becomes copies. No pass may be under way."""
        leaving, coming = ((), ()) if self.late is None else self.late.take()
        for key in leaving:
            self._leave(key)
        if coming:
            self.arrivals.bring(coming)
            self.unbooked += self.size_of(coming)

    def booked(self) -> int:
        """Bytes that came for no layer in particular since this was asked last."""
        found, self.unbooked = self.unbooked, 0
        return found

    def ask(self, layer: int, ids_TK: Tensor) -> Use:
        """A layer of the model has chosen: ids int32 [tokens, choices] in RAM. Those leave that nobody chose, and those
        come that are fetched; `behind` does the rest."""
        number = self.number[layer]
        moves, leaving = self.moves(number, ids_TK)
        for key in moves.evict:
            if key not in leaving:
                self._leave(key)
        coming = [*((number, expert) for expert in moves.admit), *moves.prefetch]
        if not moves.fetch:
            return Use(self._there(number, ids_TK[: self.generating]), None, None, leaving, coming)
        ready = self.arrivals.bring([(number, expert) for expert in moves.fetch])  # others may move for them
        here = self._there(number, ids_TK[: self.generating], moves.fetch)
        fetched, at = torch.full_like(here, ABSENT), torch.tensor(moves.fetch)
        fetched[at] = self.slots.of_LE[number, at]
        return Use(here, fetched, ready, leaving, coming)

    def behind(self, use: Use) -> Moved:
        """All of the layer is under way: those leave that it chose, and others come behind it."""
        for key in use.leaving:
            self._leave(key)
        if use.coming:
            self.arrivals.bring(use.coming)
        there = use.here >= 0 if use.fetched is None else (use.here >= 0) | (use.fetched >= 0)
        fetched = 0 if use.fetched is None else int((use.fetched >= 0).sum())
        return Moved(frozenset(there.nonzero().flatten().tolist()), fetched, self.size_of(use.coming) + self.booked())

    def size_of(self, keys: Sequence[Key]) -> int:
        """Bytes of experts."""
        return sum(self.shape.expert_bytes[layer] for layer, _ in keys)

    def bank(self, layer: int) -> ExpertBank | None:
        """The places for experts of a layer of the model; None: there are none."""
        return self.slots.banks[self.number[layer]]

    def answer(self, number: int, chosen: tuple[int, ...]) -> Moves:
        """Asks the policy about a layer, or notes that it is to be asked."""
        if self.late is None:
            return super().answer(number, chosen)
        self.late.layer(self.steps, number, chosen)
        return NOTHING

    def places(self) -> Tensor:
        """The place of every expert that has arrived, -1 for others: int32 [layers with experts, experts], in RAM."""
        here_LE = self.slots.of_LE.clone()
        for key in self.arrivals.missing():
            here_LE[key] = ABSENT
        return here_LE

    def _there(self, number: int, chosen_TK: Tensor, fetched: Sequence[int] = ()) -> Tensor:
        """The places of a layer's experts that have arrived, but those that it fetches; chosen: by generated tokens."""
        here_E = self.slots.of_LE[number].clone()
        if fetched:
            here_E[torch.tensor(fetched)] = ABSENT
        for layer, expert in self.arrivals.missing():
            if layer == number and expert not in fetched:
                here_E[expert] = ABSENT
                self.late_arrivals += bool((chosen_TK == expert).any())
        return here_E

    def _leave(self, key: Key) -> None:
        self.arrivals.forget(key)
        self.slots.give_back(key)


def budget_of(room: SharedRoom, shape: Shape, open_pages: int) -> int:
    """Bytes for experts while so many pages are open, no more than all take."""
    return min(room.budget(open_pages), shape.nbytes)


def shape_of(layouts: Sequence[ExpertLayout], banks: Sequence[ExpertBank]) -> Shape:
    """Of a model, as policies see it."""
    return Shape(tuple(bank.experts for bank in banks), tuple(layout.bytes for layout in layouts))
