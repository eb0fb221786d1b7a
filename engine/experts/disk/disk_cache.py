"""The experts that a policy keeps in RAM of a model whose experts stay in the file, and those on their way there.

The policy and the count are those of a replay (`policies/residents.py`). What is resident has a place in RAM; whether
its bytes have come is known here alone: a layer that needs it waits. A read that failed is begun anew when its expert
is chosen again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ....kernels.packed import ExpertBank
from ...policies.protocol import Key, Moves, Policy
from ..cache.ruled_cache import RuledCache, chosen_of
from ..cache.shared_memory import SharedMemory, SharedRoom
from ..cache.slots import ABSENT, Slots
from .files import ExpertFiles
from .reads import Reading, Reads

AT_ONCE = 64  # reads that are queued together at the start


@dataclass
class Use:
    """What a layer finds. number: of the layer among those with experts. ready: chosen experts that are in RAM; coming:
    those that get a place there and are read; others: those that are read for this layer alone. admit: of these, those
    that get a place behind the layer. read, ahead: experts of this layer, and bytes of any, that are read."""

    number: int
    ready: list[int]
    coming: dict[int, Reading]
    others: list[int]
    leaving: Sequence[Key]
    moves: Moves
    read: int
    ahead: int = 0
    held: dict[int, Tensor] = field(default_factory=dict)  # bytes of admitted experts, until they get their place
    earlier: set[int] = field(default_factory=set)


class DiskCache(RuledCache):
    """The places are in RAM, and filled from files."""

    def __init__(self, policy: Policy, budget: int, files: ExpertFiles, reads: Reads) -> None:
        super().__init__(policy, budget, files.stored.layers, files.shape)
        self.files, self.reads, self.first = files, reads, self.resident
        room = SharedRoom.of_experts(min(budget, self.shape.nbytes), self.shape.expert_bytes)
        self.memory = SharedMemory(room, None)
        self.slots = Slots(self.shape, files.layouts, self.memory, room.rooms(0), self.first)
        self.coming: dict[Key, Reading] = {}
        self.bytes_s: float | None = None  # of the disk, where it was measured
        self.notes: list[str] = []  # for people
        self.unbooked = 0  # bytes that are read for no layer in particular

    def fill(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Reads what is resident at the start. progress: bytes done, bytes in all."""
        sizes = self.files.read_bytes
        total, done = sum(sizes[layer] for layer, _ in self.first), 0
        for at in range(0, len(self.first), AT_ONCE):
            keys = self.first[at : at + AT_ONCE]
            for key in keys:
                self._bring(key)
            for key in keys:
                self._await(key)
            done += sum(sizes[layer] for layer, _ in keys)
            if progress is not None:
                progress(done, total)

    def _await(self, key: Key) -> None:
        reading = self.coming[key]
        self.reads.wait([reading])
        del self.coming[key]
        if reading.error is not None:
            raise reading.error

    def settle(self) -> None:
        """The policy answers at once: nothing is ever left to ask."""

    def bring_ahead(self, moves: Moves) -> None:
        for key in moves.evict:
            self._leave(key)
        for key in moves.prefetch:
            self.unbooked += self._bring(key, is_ahead=True)

    def bank(self, number: int) -> ExpertBank | None:
        """The places for a layer's experts; None: there are none."""
        return self.slots.banks[number]

    def places(self, number: int) -> Tensor:
        """By expert of a layer its place, or ABSENT: int32 [experts]."""
        return self.slots.of_LE[number]

    def ask(self, layer: int, ids_TK: Tensor) -> Use:
        """A layer of the model has chosen: ids int32 [tokens, choices]. Those leave that nobody chose, and what is
        fetched is on its way; `behind` does the rest."""
        number = self.number[layer]
        moves, leaving = self.moves(number, ids_TK)
        for key in moves.evict:
            if key not in leaving:
                self._leave(key)
        for expert in moves.fetch:
            self._bring((number, expert))
        found = Use(number, [], {}, [], leaving, moves, len(moves.fetch), self.unbooked)
        self.unbooked = 0
        for expert in chosen_of(ids_TK):
            self._sort(found, expert)
        found.read += len(found.others)
        return found

    def _sort(self, use: Use, expert: int) -> None:
        """Where a chosen expert is."""
        key = use.number, expert
        if int(self.slots.of_LE[use.number, expert]) == ABSENT:
            use.others.append(expert)
            return
        reading = self.coming.get(key)
        if reading is not None and reading.is_done:
            del self.coming[key]
            reading = None if reading.error is None else self._again(use, key)
        if reading is None:
            use.ready.append(expert)
            return
        if expert not in use.moves.fetch:
            self.late_arrivals += 1
            self.reads.hurry(reading)
            use.earlier.add(expert)
        use.coming[expert] = reading

    def _again(self, use: Use, key: Key) -> Reading:
        """Reads an expert whose place has never got its bytes."""
        use.read += 1
        return self._read(key)

    def arrived(self, use: Use, expert: int) -> None:
        """One that was waited for is there, or its read has failed: raises what it failed of. What an earlier pass
        began to read is read again: its failure was that pass's, and the disk may have come back since."""
        reading = use.coming.pop(expert)
        if reading.error is not None:
            if expert not in use.earlier:
                raise reading.error
            use.earlier.remove(expert)
            use.coming[expert] = self._again(use, (use.number, expert))
            return
        self.coming.pop((use.number, expert), None)
        use.ready.append(expert)

    def behind(self, use: Use) -> None:
        """The layer is done, or has failed: those leave that it chose, and others come."""
        for key in use.leaving:
            self._leave(key)
        for expert in use.moves.admit:
            key = use.number, expert
            if expert in use.held:
                self._place(key)
                self.slots.at(key).copy_(use.held.pop(expert))
            else:
                use.ahead += self._bring(key, is_ahead=True)
        for key in use.moves.prefetch:
            use.ahead += self._bring(key, is_ahead=True)

    def _bring(self, key: Key, is_ahead: bool = False) -> int:
        """Gives an expert a place and begins to read it; how many bytes that is."""
        self._place(key)
        self._read(key, is_ahead)
        return self.files.read_bytes[key[0]]

    def _place(self, key: Key) -> None:
        """Gives an expert a place, for which others may move: those that are still read when they have come."""
        for move in self.slots.take(key):
            if (reading := self.coming.get(move.key)) is not None:
                self.reads.hurry(reading)
                self.reads.wait([reading])
            target, source = self.slots.ends_of(move)
            target.copy_(source)

    def _read(self, key: Key, is_ahead: bool = False) -> Reading:
        reading = self.files.reading(key, self.slots.at(key))
        self.coming[key] = reading
        self.reads.start(reading, is_ahead)
        return reading

    def _leave(self, key: Key) -> None:
        """An expert leaves; nothing is written to its place any more."""
        if int(self.slots.of_LE[key]) == ABSENT:  # it found none: an error came before
            return
        reading = self.coming.pop(key, None)
        if reading is not None:
            self.reads.stop(reading)
        self.slots.give_back(key)

    def close(self) -> None:
        """Ends the reads, and closes the files."""
        self.reads.close()
        self.files.close()
