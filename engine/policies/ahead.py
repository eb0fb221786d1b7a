"""Policies that fetch before a layer has chosen, or only so many of the missing as the link can bring meanwhile."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from .protocol import Asked, Key, Moves
from .recency import Lru

FOLLOWERS = 2  # experts of the next layer that are fetched for a layer


class NextLayer(Lru):
    """`lru`, and behind every layer up to FOLLOWERS experts of the next one come that followed most often on what this
    one chose. Those leave for them that were not used for longest, and none that is likely itself."""

    name = "next-layer"

    def begin(self) -> None:
        super().begin()
        self.before: tuple[int, tuple[int, ...]] = (-1, ())  # the last layer, and what it chose
        self.followed: defaultdict[Key, Counter[int]] = defaultdict(Counter)

    def seen(self, asked: Asked) -> None:
        super().seen(asked)
        layer, chosen = self.before
        if layer == asked.layer - 1:
            for expert in chosen:
                self.followed[layer, expert].update(asked.chosen)
        self.before = asked.layer, asked.chosen

    def layer(self, asked: Asked) -> Moves:
        moves, after = super().layer(asked), asked.layer + 1
        if after == len(self.slots):
            return moves
        there, likely = asked.residents[after], self._likely(asked)
        coming = [expert for expert in likely if expert not in there][:FOLLOWERS]
        old = sorted((e for e in there if e not in likely), key=lambda e: (*self.worth(after, e), e))
        free = self.slots[after] - len(there)
        coming = coming[: free + len(old)]
        leaving = old[: max(0, len(coming) - free)]
        return moves._replace(
            prefetch=tuple((after, expert) for expert in coming),
            evict=(*moves.evict, *((after, expert) for expert in leaving)),
        )

    def _likely(self, asked: Asked) -> list[int]:
        """As many experts of the next layer as this one chose, the likeliest first."""
        odds: Counter[int] = Counter()
        for expert in asked.chosen:
            odds.update(self.followed[asked.layer, expert])
        return sorted(odds, key=lambda expert: (-odds[expert], expert))[: len(asked.chosen)]


class Split(Lru):
    """Of m missing ones so many come that link and CPU are done at the same time; the others the CPU computes. Those
    come that were used most recently. fetched: by the number of missing ones how many to fetch, from rates that were
    measured together (`bandwidth_model/split_decode.py`); for more the last one counts."""

    name = "split"

    def __init__(self, fetched: Sequence[int]) -> None:
        assert fetched, "split without a table"
        self.fetched = fetched

    def begin(self) -> None:
        super().begin()
        self.before: dict[Key, float] = {}

    def seen(self, asked: Asked) -> None:
        self.before = {(asked.layer, e): self.last.get((asked.layer, e), -1) for e in asked.chosen}
        super().seen(asked)

    def wanted(self, asked: Asked, missing: Sequence[int]) -> list[int]:
        most = self.fetched[min(len(missing), len(self.fetched) - 1)]
        return sorted(missing, key=lambda e: (-self.before[asked.layer, e], e))[:most]
