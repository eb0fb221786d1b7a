"""What caches of experts share, wherever their places are: the policy is asked about each layer of a pass, and counted
as a replay counts it (`policies/residents.py`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from ...policies.between import Event, Learning, Read, Switch, take_in
from ...policies.protocol import NOTHING, Key, Moves, Policy, Shape
from ...policies.residents import Counts, Residents


class RuledCache(ABC):
    """policy, budget: in bytes. layers: the model's numbers of those with experts, by which everything here counts.
    Raises PolicyError for a start that does not fit."""

    def __init__(self, policy: Policy, budget: int, layers: Sequence[int], shape: Shape) -> None:
        self.policy, self.budget, self.shape = policy, budget, shape
        self.number = {layer: number for number, layer in enumerate(layers)}
        self.residents = Residents(policy, shape, budget)
        self.counts, self.late_arrivals, self.steps, self.generating = Counts(), 0, -1, 0
        self.has_begun = False
        self.prompt_LE: Tensor | None = None  # of prompts, how many tokens chose each
        self.switched = ""  # which policy it had before, and until when
        self.why: tuple[str, ...] = ()  # this policy, where nobody named it; for people
        self.events: defaultdict[int, list[Event]] = defaultdict(list)  # before which pass what happened, but prompts

    @property
    def resident(self) -> list[Key]:
        """The experts that the policy has there now."""
        return [(layer, expert) for layer, there in enumerate(self.residents.by_layer) for expert in sorted(there)]

    def begin(self, generating: int, is_graph: bool = False) -> None:
        """A pass begins, whose first tokens, so many, are generated ones."""
        if generating and isinstance(self.policy, Learning):
            self._switch(self.policy)
        if generating and self.prompt_LE is not None and bool(self.prompt_LE.any()):
            self.settle()
            self.bring_ahead(self.told(Read(list(map(_chosen, self.prompt_LE)))))
            self.prompt_LE.zero_()
        self.generating, self.has_begun = generating, True
        self.steps += generating > 0

    def _switch(self, policy: Learning) -> None:
        """Another policy takes over, if it is time for that."""
        if (after := policy.successor()) is not None:
            self.settle()
            before = self.policy.name
            self.bring_ahead(self.told(Switch(after)))
            self.switched = f"{before} until pass {self.steps + 1}"

    def seed(self) -> None:
        """From now on the policy is told what prompts chose, before the next pass that generates."""
        self.prompt_LE = torch.zeros((self.shape.layers, max(self.shape.experts)), dtype=torch.int64)

    @abstractmethod
    def settle(self) -> None:
        """Something is to happen between two passes: nothing is left to ask of those that are over."""

    @abstractmethod
    def bring_ahead(self, moves: Moves) -> None:
        """Does between two passes what the policy says: evicts, and prefetches behind all else."""

    def told(self, event: Event) -> Moves:
        """What the policy says to something that happened between two passes, which is counted and not done yet."""
        moves, counts = take_in(self.residents, self.steps + 1, event)
        self.policy, self.budget = self.residents.policy, self.residents.budget
        self.counts.add(counts)
        if not isinstance(event, Read):
            self.events[self.steps + 1].append(event)
        return moves

    def moves(self, number: int, ids_TK: Tensor) -> tuple[Moves, list[Key]]:
        """What the policy says to what a layer's generated tokens chose; and which of those it evicts were chosen
        themselves, so that they leave behind the layer."""
        if self.prompt_LE is not None and self.has_begun:
            read = ids_TK[self.generating :].flatten().long()
            self.prompt_LE[number] += torch.bincount(read[read >= 0], minlength=self.prompt_LE.shape[1])
        if not self.generating:
            return NOTHING, []
        chosen = chosen_of(ids_TK[: self.generating])
        moves = self.answer(number, chosen)
        return moves, moves.late(number, chosen)

    def answer(self, number: int, chosen: tuple[int, ...]) -> Moves:
        """Asks the policy about a layer."""
        moves, counts = self.residents.layer(self.steps, number, chosen)
        self.counts.add(counts)
        return moves


def _chosen(counts_E: Tensor) -> dict[int, int]:
    """By expert how many chose it, of those that were."""
    experts = counts_E.nonzero().flatten()
    return dict(zip(experts.tolist(), counts_E[experts].tolist(), strict=True))


def chosen_of(ids_TK: Tensor) -> tuple[int, ...]:
    """The different experts among choices, rising."""
    return tuple(sorted(set(ids_TK.flatten().tolist())))
