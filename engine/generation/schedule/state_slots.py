"""Slots of recurrent states: one for each running sequence, and kept copies that a later prompt can go on from.

A state is no page: it stands for all tokens before it, so that a prompt can take over pages only up to where a copy of
the state was kept. Copies are known by the digest of the page that they end with (`engine/model/kv_cache.py`), the one
used longest ago goes first. Knows slots and digests, no tensors.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from ...model.kv_cache import Digest

LEAST_KEPT = 4


@dataclass(frozen=True)
class Keep:
    """The state after so many tokens of a sequence goes into a slot."""

    tokens: int
    slot: int


class StateSlots:
    """Slots [0, sequences) for running ones, `spare` for a pass outside of the schedule, the rest for copies."""

    def __init__(self, sequences: int) -> None:
        self.free = list(range(sequences - 1, -1, -1))
        self.spare = sequences
        self.room = list(range(self.count(sequences) - 1, sequences, -1))
        self.unnamed: list[int] = []
        self.slot_of: OrderedDict[Digest, int] = OrderedDict()
        self.taken = [0] * self.count(sequences)  # how often each was reserved: with the same number, the same content

    @staticmethod
    def count(sequences: int) -> int:
        """All slots where so many sequences run at once: as many copies are kept, and a few."""
        return sequences + 1 + max(sequences, LEAST_KEPT)

    def __contains__(self, digest: object) -> bool:
        return digest in self.slot_of

    def find(self, digest: Digest) -> int | None:
        """The slot of the copy that ends there, which counts as used now."""
        if digest in self.slot_of:
            self.slot_of.move_to_end(digest)
        return self.slot_of.get(digest)

    def reserve(self) -> int:
        """A slot for a copy that is being made: nobody finds it before `name`."""
        slot = self.room.pop() if self.room else self.slot_of.popitem(last=False)[1]
        self.unnamed.append(slot)
        self.taken[slot] += 1
        return slot

    def name(self, digest: Digest, slot: int) -> None:
        """Makes a copy known. One that is known already stays, and the slot is free again."""
        self.unnamed.remove(slot)
        if digest in self.slot_of:
            self.room.append(slot)
        else:
            self.slot_of[digest] = slot

    def forget(self, digest: Digest) -> None:
        """Frees the slot of a copy that a newer one stands for."""
        if (slot := self.slot_of.pop(digest, None)) is not None:
            self.room.append(slot)

    def forget_all(self) -> None:
        """No copy is worth anything any more."""
        for digest in list(self.slot_of):
            self.forget(digest)

    def give_back(self) -> None:
        """Frees what was reserved for a pass that did not come to its end."""
        self.room += self.unnamed
        self.unnamed.clear()
