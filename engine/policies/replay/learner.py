"""A policy that begins with the same share of every layer and notes what is chosen, until it is known what is
better."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set

import numpy as np

from ..fixed import Uniform
from ..protocol import NOTHING, Asked, Key, Moves, Policy, Shape
from .choices import Choices

LOOKS = (256, 1024)  # passes after which another policy is looked for
Better = Callable[[Choices, int], Policy | None]  # of passes and a budget


class Learner(Uniform):
    """better: the policy for what was chosen and a budget in bytes; None: none is better than this one."""

    def __init__(self, better: Better) -> None:
        self.better, self.chosen, self.looks = better, list[tuple[int, ...]](), list(LOOKS)

    def start(self, shape: Shape, budget: int) -> Iterable[Key]:
        self.layers, self.budget = shape.layers, budget
        return super().start(shape, budget)

    def resized(self, shape: Shape, budget: int, residents: Sequence[Set[int]]) -> Moves:
        self.budget = budget
        return super().resized(shape, budget, residents)

    def layer(self, asked: Asked) -> Moves:
        if self.looks:
            self.chosen.append(asked.chosen)
        return NOTHING

    def successor(self) -> Policy | None:
        """Who takes over; None: nobody, or not yet."""
        passes = len(self.chosen) // self.layers
        if not self.looks or passes < self.looks[0]:
            return None
        self.looks.pop(0)
        found = self.better(self._choices(passes), self.budget)
        if not self.looks:
            self.chosen.clear()
        return found

    def _choices(self, passes: int) -> Choices:
        chosen = self.chosen[: passes * self.layers]
        offsets = np.concatenate([[0], np.cumsum([len(one) for one in chosen])]).astype(np.int64)
        flat = np.array([expert for one in chosen for expert in one], np.uint16)
        return Choices(layers=self.layers, sizes=np.ones(passes, np.int64), offsets=offsets, chosen=flat)
