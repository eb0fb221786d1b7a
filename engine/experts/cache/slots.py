"""Places for single experts in a fast memory, and which expert lies in which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ....kernels import ExpertLayout
from ....kernels.packed import ExpertBank
from ...policies.protocol import Key, Shape
from .shared_memory import SharedMemory
from .zones import Move, Room, Zones

ABSENT = -1


class Slots:
    """Of all layers, in memory that experts of all sizes have together, and pages may be in. rooms: of it, for the
    beginning; start: who will have the first places. banks: by layer with experts the places of its layout, None where
    there can be none."""

    def __init__(
        self,
        shape: Shape,
        layouts: Sequence[ExpertLayout],
        memory: SharedMemory,
        rooms: Sequence[Room],
        start: Sequence[Key] = (),
    ) -> None:
        made = {layout: ExpertBank(layout, memory.places(layout.bytes)) for layout in layouts}
        self.banks = [made[layout] if made[layout].experts else None for layout in layouts]
        self.of_LE = torch.full((shape.layers, max(shape.experts)), ABSENT, dtype=torch.int32)  # in RAM
        most = Counter[int]()
        for size, experts in zip(shape.expert_bytes, shape.experts, strict=True):
            most[size] += experts
        self.sizes, self.zones = shape.expert_bytes, Zones(most)
        self.by_size = {layout.bytes: bank.data for layout, bank in made.items()}
        self.zones.keep(rooms, Counter(self.sizes[layer] for layer, _ in start))

    @property
    def nbytes(self) -> int:
        """Of the places that there are."""
        return self.zones.nbytes

    @property
    def count(self) -> int:
        """Of all places."""
        return sum(map(self.zones.count, self.zones.sizes))

    def keep(self, rooms: Sequence[Room]) -> list[Move]:
        """Places are there from now on. Who moves; nobody's bytes have been moved yet."""
        return self._noted(self.zones.keep(rooms))

    def take(self, key: Key) -> list[Move]:
        """An expert has a place from now on. Who moves before that."""
        number, moves = self.zones.take(self.sizes[key[0]], key)
        self._noted(moves)
        self.of_LE[key] = number
        return moves

    def give_back(self, key: Key) -> None:
        """An expert leaves."""
        self.zones.give_back(self.sizes[key[0]], int(self.of_LE[key]))
        self.of_LE[key] = ABSENT

    def at(self, key: Key) -> Tensor:
        """The place of an expert: uint8 [bytes of one]."""
        bank = self.banks[key[0]]
        assert bank is not None, f"expert {key} in no bank"
        return bank.data[int(self.of_LE[key])]

    def ends_of(self, move: Move) -> tuple[Tensor, Tensor]:
        """Where an expert goes, and where it is: uint8 [bytes of one], each."""
        places = self.by_size[move.size]
        return places[move.new], places[move.old]

    def _noted(self, moves: list[Move]) -> list[Move]:
        for move in moves:
            self.of_LE[move.key] = move.new
        return moves
