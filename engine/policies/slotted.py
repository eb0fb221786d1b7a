"""What policies share that have a number of slots in every layer, and choose who leaves when one comes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from .protocol import Asked, Key, Moves, Shape


class Slotted(ABC):
    """Every layer has its own slots, filled with its first experts at the start. A subclass says who of the residents
    is worth least (`worth`), which of the missing come at all (`wanted`), and remembers what was chosen (`seen`)."""

    name = "slotted"

    def start(self, shape: Shape, budget: int) -> Iterable[Key]:
        self.shape, self.slots = shape, shape.slots(budget)
        self.begin()
        return shape.first_of_each(budget)

    @abstractmethod
    def begin(self) -> None:
        """Before the first layer."""

    @abstractmethod
    def seen(self, asked: Asked) -> None:
        """A layer chose; called before the others."""

    def wanted(self, asked: Asked, missing: Sequence[int]) -> list[int]:
        """Of the missing those that are to come, the most wanted first."""
        return list(missing)

    @abstractmethod
    def worth(self, layer: int, expert: int) -> tuple[float, ...]:
        """Who has least leaves first."""

    def may_replace(self, layer: int, expert: int, victim: int) -> bool:
        """Whether one that comes is worth the one that would leave."""
        return True

    def layer(self, asked: Asked) -> Moves:
        self.seen(asked)
        layer, missing = asked.layer, asked.missing
        coming = self.wanted(asked, missing) if missing else []
        if not coming:
            return Moves()
        free, chosen = self.slots[layer] - len(asked.resident), set(asked.chosen)
        victims = sorted((e for e in asked.resident if e not in chosen), key=lambda e: (*self.worth(layer, e), e))
        fetch, evict = [], []
        for expert in coming:
            if free > 0:
                free -= 1
            elif victims and self.may_replace(layer, expert, victims[0]):
                evict.append((layer, victims.pop(0)))
            else:
                break
            fetch.append(expert)
        return Moves(fetch=tuple(fetch), evict=tuple(evict))
