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
from ...policies.residents import Counts, Residents
from ..backend import Moved
from .arrivals import Arrivals
from .late_answers import LateAnswers
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


class ExpertCache:
    """layers: the model's numbers of those with experts, by which everything here counts; layouts, banks: of each, all
    experts in RAM. budget: bytes. device: of the places. Raises PolicyError for a start that does not fit."""

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
        self.policy, self.budget = policy, budget
        self.shape = shape_of(layouts, banks)
        self.number = {layer: number for number, layer in enumerate(layers)}
        self.residents = Residents(policy, self.shape, budget)
        start = [(layer, expert) for layer, there in enumerate(self.residents.by_layer) for expert in sorted(there)]
        self.slots = Slots(self.shape, layouts, pool_sizes(self.shape, layouts, start, budget), device)
        self.arrivals = Arrivals(self.slots, banks, *streams, spans)
        streams[0].wait(self.arrivals.bring(start))
        self.counts, self.late_arrivals, self.steps, self.generating = Counts(), 0, -1, 0
        self.late: LateAnswers | None = None
        self.why: tuple[str, ...] = ()  # this policy, where nobody named it; for people

    def begin(self, generating: int) -> None:
        """A pass begins, whose first tokens, so many, are generated ones."""
        if self.late is not None:
            self.late.begin()
            self.carry_out()
        self.generating = generating
        self.steps += generating > 0

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
        chosen, moves = self._moves(number, ids_TK)
        leaving = [key for key in moves.evict if key[0] == number and key[1] in chosen]
        for key in moves.evict:
            if key not in leaving:
                self._leave(key)
        here, coming = self._there(number, chosen), [*((number, expert) for expert in moves.admit), *moves.prefetch]
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

    def _moves(self, number: int, ids_TK: Tensor) -> tuple[tuple[int, ...], Moves]:
        """What generated tokens chose, each expert once, and what the policy says to it."""
        if not self.generating:
            return (), NOTHING
        chosen = chosen_of(ids_TK[: self.generating])
        if self.late is not None:
            self.late.layer(self.steps, number, chosen)
            return chosen, NOTHING
        moves, counts = self.residents.layer(self.steps, number, chosen)
        self.counts.add(counts)
        return chosen, moves

    def places(self) -> Tensor:
        """The place of every expert that has arrived, -1 for others: int32 [layers with experts, experts], in RAM."""
        here_LE = self.slots.of_LE.clone()
        for key in self.arrivals.missing():
            here_LE[key] = ABSENT
        return here_LE

    def _there(self, number: int, chosen: Sequence[int]) -> Tensor:
        """The places of a layer's experts that have arrived."""
        here_E = self.slots.of_LE[number].clone()
        for layer, expert in self.arrivals.missing():
            if layer == number:
                here_E[expert] = ABSENT
                self.late_arrivals += expert in chosen
        return here_E

    def _leave(self, key: Key) -> None:
        self.arrivals.forget(key)
        self.slots.give_back(key)


def chosen_of(ids_TK: Tensor) -> tuple[int, ...]:
    """The different experts among choices, rising."""
    return tuple(sorted(set(ids_TK.flatten().tolist())))


def shape_of(layouts: Sequence[ExpertLayout], banks: Sequence[ExpertBank]) -> Shape:
    """Of a model, as policies see it."""
    return Shape(tuple(bank.experts for bank in banks), tuple(layout.bytes for layout in layouts))
