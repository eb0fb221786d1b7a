"""What policies share that have a number of slots in every layer, and choose who leaves when one comes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence, Set

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

    def resized(self, shape: Shape, budget: int, residents: Sequence[Set[int]]) -> Moves:
        """Of each layer those leave that are worth least; slots that it gets are filled when something is missing."""
        self.slots = shape.slots(budget)
        leaving = [
            (layer, expert)
            for layer, there in enumerate(residents)
            for expert in self._least(layer, there)[: max(0, len(there) - self.slots[layer])]
        ]
        return Moves(evict=tuple(leaving))

    def prompted(self, step: int, prompt: Sequence[Mapping[int, int]], residents: Sequence[Set[int]]) -> Moves:
        """Of each layer those are resident that the prompt chose most often, and of the others those that were."""
        coming, leaving = [], []
        for layer, (counts, there) in enumerate(zip(prompt, residents, strict=True)):
            self.read(step, layer, counts)
            wanted = sorted(counts, key=lambda e: (-counts[e], e))[: self.slots[layer]]
            missing = [expert for expert in wanted if expert not in there]
            others = [expert for expert in self._least(layer, there) if expert not in set(wanted)]
            coming += [(layer, expert) for expert in missing]
            leaving += [(layer, e) for e in others[: max(0, len(there) + len(missing) - self.slots[layer])]]
        return Moves(prefetch=tuple(coming), evict=tuple(leaving))

    def read(self, step: int, layer: int, counts: Mapping[int, int]) -> None:  # noqa: B027 - most remember nothing
        """A prompt was read before pass `step`, of which so many tokens chose each expert of a layer."""

    def _least(self, layer: int, there: Set[int]) -> list[int]:
        """Residents of a layer, those first that are worth least."""
        return sorted(there, key=lambda e: (*self.worth(layer, e), e))
