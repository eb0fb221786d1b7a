"""Policies that never move anything: what lies where is decided before the first token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import product

from .protocol import NOTHING, Asked, Key, Moves, Shape


class Fixed(ABC):
    """`start` says it all."""

    name = "fixed"

    @abstractmethod
    def start(self, shape: Shape, budget: int) -> Iterable[Key]:
        """The experts that are resident from then on."""

    def layer(self, asked: Asked) -> Moves:
        return NOTHING

    def resized(self, shape: Shape, budget: int, residents: Sequence[Set[int]]) -> Moves:
        """Those that would have been there with this budget from the start."""
        wanted = list(dict.fromkeys(self.start(shape, budget)))
        coming = [(layer, expert) for layer, expert in wanted if expert not in residents[layer]]
        there = {(layer, expert) for layer, experts in enumerate(residents) for expert in experts}
        return Moves(prefetch=tuple(coming), evict=tuple(sorted(there.difference(wanted))))


class AllInRam(Fixed):
    """Nothing is resident."""

    name = "all-ram"

    def start(self, shape: Shape, budget: int) -> Iterable[Key]:
        return ()


class FirstLayers(Fixed):
    """The experts of the first layers stay in RAM, and those of as many last layers as fit are resident: what
    `--n-cpu-moe` does."""

    name = "first-layers"

    def start(self, shape: Shape, budget: int) -> Iterable[Key]:
        for layer in reversed(range(shape.layers)):
            budget -= shape.experts[layer] * shape.expert_bytes[layer]
            if budget < 0:
                return
            yield from product([layer], range(shape.experts[layer]))


class Uniform(Fixed):
    """The same share of every layer, its first experts: they are as good as any if all are chosen equally often."""

    name = "uniform"

    def start(self, shape: Shape, budget: int) -> Iterable[Key]:
        return shape.first_of_each(budget)


class Frequency(Fixed):
    """Those that were chosen most often for their bytes, of all layers. counts: by layer and expert, of a trace."""

    name = "frequency"

    def __init__(self, counts: Sequence[Sequence[float]]) -> None:
        self.counts = counts

    def start(self, shape: Shape, budget: int) -> Iterable[Key]:
        return hottest(shape, budget, self.counts)


def hottest(
    shape: Shape, budget: int, counts: Sequence[Sequence[float]], without: Set[Key] = frozenset()
) -> Iterator[Key]:  # fmt: skip
    """As many experts as fit, those that were chosen most often for their bytes first; of equal ones those of the first
    layers."""

    def worth(key: Key) -> float:
        return counts[key[0]][key[1]] / shape.expert_bytes[key[0]]

    keys = [key for layer, count in enumerate(shape.experts) for key in product([layer], range(count))]
    for key in sorted((key for key in keys if key not in without), key=worth, reverse=True):
        if shape.expert_bytes[key[0]] <= budget:
            budget -= shape.expert_bytes[key[0]]
            yield key
