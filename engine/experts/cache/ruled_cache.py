"""What caches of experts share, wherever their places are: the policy is asked about each layer of a pass, and counted
as a replay counts it (`policies/residents.py`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from torch import Tensor

from ...policies.between import Event, Read, take_in
from ...policies.protocol import NOTHING, Key, Moves, Policy, Shape
from ...policies.residents import Counts, Residents


class RuledCache:
    """policy, budget: in bytes. layers: the model's numbers of those with experts, by which everything here counts.
    Raises PolicyError for a start that does not fit."""

    def __init__(self, policy: Policy, budget: int, layers: Sequence[int], shape: Shape) -> None:
        self.policy, self.budget, self.shape = policy, budget, shape
        self.number = {layer: number for number, layer in enumerate(layers)}
        self.residents = Residents(policy, shape, budget)
        self.counts, self.late_arrivals, self.steps, self.generating = Counts(), 0, -1, 0
        self.why: tuple[str, ...] = ()  # this policy, where nobody named it; for people
        self.events: defaultdict[int, list[Event]] = defaultdict(list)  # before which pass what happened, but prompts

    @property
    def resident(self) -> list[Key]:
        """The experts that the policy has there now."""
        return [(layer, expert) for layer, there in enumerate(self.residents.by_layer) for expert in sorted(there)]

    def begin(self, generating: int, is_graph: bool = False) -> None:
        """A pass begins, whose first tokens, so many, are generated ones."""
        self.generating = generating
        self.steps += generating > 0

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


def chosen_of(ids_TK: Tensor) -> tuple[int, ...]:
    """The different experts among choices, rising."""
    return tuple(sorted(set(ids_TK.flatten().tolist())))
