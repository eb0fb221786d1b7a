"""Policies that go by what was used lately."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from .protocol import Asked, Key
from .slotted import Slotted

WINDOW = 64  # passes within which a second miss counts
PROTECTED = 0.8  # of a layer's slots, for what was used again


class Lru(Slotted):
    """Whatever is missing comes, and the one leaves that was not used for longest."""

    name = "lru"

    def begin(self) -> None:
        self.last: dict[Key, float] = {}

    def seen(self, asked: Asked) -> None:
        self.last.update(((asked.layer, expert), asked.step) for expert in asked.chosen)

    def read(self, step: int, layer: int, counts: Mapping[int, int]) -> None:
        """What a prompt chose was used just before, the most chosen last."""
        total = sum(counts.values()) + 1
        self.last.update(((layer, expert), step - 1 + count / total) for expert, count in counts.items())

    def worth(self, layer: int, expert: int) -> tuple[float, ...]:
        return (self.last.get((layer, expert), -1),)


class SegmentedLru(Lru):
    """What was used only once leaves before what was used again: a layer has PROTECTED of its slots for those."""

    name = "slru"

    def begin(self) -> None:
        super().begin()
        self.protected: defaultdict[int, dict[int, int]] = defaultdict(dict)  # layer: expert -> when it was used last

    def seen(self, asked: Asked) -> None:
        super().seen(asked)
        kept = self.protected[asked.layer].items()
        protected = self.protected[asked.layer] = {e: when for e, when in kept if e in asked.resident}
        protected.update((expert, asked.step) for expert in asked.chosen if expert in asked.resident)
        most = int(PROTECTED * self.slots[asked.layer])
        for expert in sorted(protected, key=lambda e: (protected[e], e))[: max(0, len(protected) - most)]:
            del protected[expert]

    def worth(self, layer: int, expert: int) -> tuple[float, ...]:
        return (expert in self.protected[layer], *super().worth(layer, expert))


class AdmitOnSecondMiss(Lru):
    """One that is missing is computed by the CPU; if it is missing again within WINDOW passes, it comes."""

    name = "admit2"

    def begin(self) -> None:
        super().begin()
        self.missed: dict[Key, int] = {}

    def wanted(self, asked: Asked, missing: Sequence[int]) -> list[int]:
        keys = [(asked.layer, expert) for expert in missing]
        again = [e for (n, e) in keys if asked.step - self.missed.get((n, e), -WINDOW - 1) <= WINDOW]
        self.missed.update((key, asked.step) for key in keys)
        return again
