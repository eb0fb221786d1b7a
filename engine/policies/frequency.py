"""Policies that go by how often an expert was chosen, and forget slowly."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

from .protocol import Asked, Key
from .recency import Lru

AGE = 128  # passes after which a count is worth half


class AgedLfu(Lru):
    """The one leaves that was chosen least often; counts halve every AGE passes, so that topics can change. Among equal
    ones the one that was not used for longest."""

    name = "lfu"

    def begin(self) -> None:
        super().begin()
        self.counts: defaultdict[Key, float] = defaultdict(float)
        self.steps = 0

    def seen(self, asked: Asked) -> None:
        """A choice now is worth 2^(step / AGE) of one at the start: the same as halving all others."""
        super().seen(asked)
        gain = 2.0 ** ((asked.step - self.steps) / AGE)
        for expert in asked.chosen:
            self.counts[asked.layer, expert] += gain
        if gain > 2.0**64:  # before it grows out of a float
            self.counts = defaultdict(float, {key: count / gain for key, count in self.counts.items()})
            self.steps = asked.step

    def read(self, step: int, layer: int, counts: Mapping[int, int]) -> None:
        """A token of a prompt counts as one that is generated now."""
        super().read(step, layer, counts)
        gain = 2.0 ** ((step - self.steps) / AGE)
        for expert, count in counts.items():
            self.counts[layer, expert] += gain * count

    def worth(self, layer: int, expert: int) -> tuple[float, ...]:
        return (self.counts[layer, expert], *super().worth(layer, expert))


class Classes(AgedLfu):
    """As often within a factor of two is equally often, and among those the least recently used leaves; one that is
    chosen more seldom than all residents stays with the CPU."""

    name = "classes"

    def worth(self, layer: int, expert: int) -> tuple[float, ...]:
        return (self._class(layer, expert), self.last.get((layer, expert), -1))

    def may_replace(self, layer: int, expert: int, victim: int) -> bool:
        return self._class(layer, expert) >= self._class(layer, victim)

    def _class(self, layer: int, expert: int) -> float:
        count = self.counts[layer, expert]
        return math.floor(math.log2(count)) if count > 0 else -math.inf
