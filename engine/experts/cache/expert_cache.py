"""The cache of experts as a layer sees it: which of its choices are in VRAM, which come now, which the CPU computes.

The policy and the count are those of a replay (`policies/residents.py`); here its answers become copies and places. A
policy is asked about tokens that are generated. Prompts use what is there, and move nothing: of hundreds of tokens
nearly all experts are chosen, which says nothing about those to come.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....kernels import ExpertLayout
from ....kernels.packed import ExpertBank
from ...devices.streams import Stream
from ...ledger.timers import Spans
from ...policies.protocol import NOTHING, Key, Moves, Policy, Shape
from ..backend import Moved
from .arrivals import Arrivals
from .late_answers import LateAnswers
from .ruled_cache import RuledCache
from .slots import ABSENT, Slots, pool_sizes


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
    """layouts, banks: of each layer, all experts in RAM. device: of the places."""

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
    ) -> None:
        super().__init__(policy, budget, layers, shape_of(layouts, banks))
        start = self.resident
        self.slots = Slots(self.shape, layouts, pool_sizes(self.shape, layouts, start, budget), device)
        self.arrivals = Arrivals(self.slots, banks, *streams, spans)
        streams[0].wait(self.arrivals.bring(start))
        self.late: LateAnswers | None = None

    def begin(self, generating: int, is_graph: bool = False) -> None:
        if self.late is not None:
            self.late.begin(is_graph)
            self.carry_out()
        super().begin(generating, is_graph)

    def answer_late(self) -> None:
        """From now on the policy is asked when a pass is over, since passes are graphs."""
        self.late = LateAnswers(self.residents, self.counts)

    def carry_out(self) -> int:
        """What a late answer said becomes copies; their bytes. No pass may be under way."""
        leaving, coming = ((), ()) if self.late is None else self.late.take()
        for key in leaving:
            self._leave(key)
        if coming:
            self.arrivals.bring(coming)
        return self.size_of(coming)

    def ask(self, layer: int, ids_TK: Tensor) -> Use:
        """A layer of the model has chosen: ids int32 [tokens, choices] in RAM. Those leave that nobody chose, and those
        come that are fetched; `behind` does the rest."""
        number = self.number[layer]
        moves, leaving = self.moves(number, ids_TK)
        for key in moves.evict:
            if key not in leaving:
                self._leave(key)
        here = self._there(number, ids_TK[: self.generating])
        coming = [*((number, expert) for expert in moves.admit), *moves.prefetch]
        if not moves.fetch:
            return Use(here, None, None, leaving, coming)
        ready = self.arrivals.bring([(number, expert) for expert in moves.fetch])
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
        return Moved(frozenset(there.nonzero().flatten().tolist()), fetched, self.size_of(use.coming))

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

    def _there(self, number: int, chosen_TK: Tensor) -> Tensor:
        """The places of a layer's experts that have arrived; chosen: by generated tokens."""
        here_E = self.slots.of_LE[number].clone()
        for layer, expert in self.arrivals.missing():
            if layer == number:
                here_E[expert] = ABSENT
                self.late_arrivals += bool((chosen_TK == expert).any())
        return here_E

    def _leave(self, key: Key) -> None:
        self.arrivals.forget(key)
        self.slots.give_back(key)


def shape_of(layouts: Sequence[ExpertLayout], banks: Sequence[ExpertBank]) -> Shape:
    """Of a model, as policies see it."""
    return Shape(tuple(bank.experts for bank in banks), tuple(layout.bytes for layout in layouts))
