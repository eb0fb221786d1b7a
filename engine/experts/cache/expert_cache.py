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
from .slots import ABSENT, Slots, pool_sizes


class Use(NamedTuple):
    """What a layer finds. here: int32 [experts], the place of those that can be read at once, -1 for others; fetched:
    the same of those that are on their way, and can be read when `ready` has come. leaving, coming: behind the layer."""

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
        self.counts, self.late, self.steps, self.generating = Counts(), 0, -1, 0

    def begin(self, generating: int) -> None:
        """A pass begins, whose first tokens, so many, are generated ones."""
        self.generating = generating
        self.steps += generating > 0

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
        fetched[at] = self.slots.of[number][at]
        return Use(here, fetched, ready, leaving, coming)

    def behind(self, use: Use) -> Moved:
        """All of the layer is under way: those leave that it chose, and others come behind it."""
        for key in use.leaving:
            self._leave(key)
        if use.coming:
            self.arrivals.bring(use.coming)
        there = use.here >= 0 if use.fetched is None else (use.here >= 0) | (use.fetched >= 0)
        fetched = 0 if use.fetched is None else int((use.fetched >= 0).sum())
        size = sum(self.shape.expert_bytes[layer] for layer, _ in use.coming)
        return Moved(frozenset(there.nonzero().flatten().tolist()), fetched, size)

    def bank(self, layer: int) -> ExpertBank | None:
        """The places for experts of a layer of the model; None: there are none."""
        return self.slots.banks[self.number[layer]]

    def _moves(self, number: int, ids_TK: Tensor) -> tuple[tuple[int, ...], Moves]:
        """What generated tokens chose, each expert once, and what the policy says to it."""
        if not self.generating:
            return (), NOTHING
        chosen = tuple(sorted(set(ids_TK[: self.generating].flatten().tolist())))
        moves, counts = self.residents.layer(self.steps, number, chosen)
        self.counts.add(counts)
        return chosen, moves

    def _there(self, number: int, chosen: Sequence[int]) -> Tensor:
        """The places of a layer's experts that have arrived."""
        here = self.slots.of[number].clone()
        for expert in self.arrivals.missing(number):
            here[expert] = ABSENT
            self.late += expert in chosen
        return here

    def _leave(self, key: Key) -> None:
        self.arrivals.forget(key)
        self.slots.give_back(key)


def shape_of(layouts: Sequence[ExpertLayout], banks: Sequence[ExpertBank]) -> Shape:
    """Of a model, as policies see it."""
    return Shape(tuple(bank.experts for bank in banks), tuple(layout.bytes for layout in layouts))
