"""Experts in the memory of a second GPU, beside those in the first one's: a policy of two levels that moves nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .fixed import Fixed, hottest
from .protocol import Key, Shape


class SecondGpu(Fixed):
    """The first GPU has the experts that were chosen most often for their bytes, the second one the next of them, and
    computes them. store_bytes: of the second one; counts: by layer and expert, of a trace. Without counts both have the
    same share of every layer."""

    name = "second-gpu"

    def __init__(self, store_bytes: int, counts: Sequence[Sequence[float]] | None = None) -> None:
        self.store_bytes, self.counts = store_bytes, counts

    def start(self, shape: Shape, budget: int) -> Iterable[Key]:
        self.shape = shape
        self.first = shape.first_of_each(budget) if self.counts is None else list(hottest(shape, budget, self.counts))
        return self.first

    def store(self) -> Iterable[Key]:
        if self.counts is not None:
            return hottest(self.shape, self.store_bytes, self.counts, without=frozenset(self.first))
        taken = [sum(layer == n for layer, _ in self.first) for n in range(self.shape.layers)]
        left = Shape(tuple(a - b for a, b in zip(self.shape.experts, taken, strict=True)), self.shape.expert_bytes)
        return [(layer, taken[layer] + expert) for layer, expert in left.first_of_each(self.store_bytes)]
