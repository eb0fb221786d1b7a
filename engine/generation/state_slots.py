"""Slots of recurrent states: one for each running sequence, and kept copies that a later prompt can go on from.

A state is no page: it stands for all tokens before it, so that a prompt can take over pages only up to where a copy of
the state was kept. Copies are known by the digest of the page that they end with (`engine/model/kv_cache.py`), the one
used longest ago goes first. Knows slots and digests, no tensors.
"""

from __future__ import annotations

from collections import OrderedDict

from ..model.kv_cache import Digest


class StateSlots:
    """Slots [0, running) for sequences, one more for a pass outside of the schedule, `kept` behind it for copies."""

    def __init__(self, running: int, kept: int) -> None:
        self.free = list(range(running - 1, -1, -1))
        self.spare = running
        self.room = list(range(running + kept, running, -1))
        self.slot_of: OrderedDict[Digest, int] = OrderedDict()

    def find(self, digest: Digest) -> int | None:
        """The slot of the copy that ends there, which counts as used now."""
        if digest in self.slot_of:
            self.slot_of.move_to_end(digest)
        return self.slot_of.get(digest)

    def reserve(self) -> int:
        """A slot for a copy that is being made: nobody finds it before `name`."""
        return self.room.pop() if self.room else self.slot_of.popitem(last=False)[1]

    def name(self, digest: Digest, slot: int) -> None:
        """Makes a copy known. One that is known already stays, and the slot is free again."""
        if digest in self.slot_of:
            self.room.append(slot)
        else:
            self.slot_of[digest] = slot

    def forget(self, digest: Digest) -> None:
        """Frees the slot of a copy that a newer one stands for."""
        if (slot := self.slot_of.pop(digest, None)) is not None:
            self.room.append(slot)
