"""Where experts of several sizes lie in one memory: which numbers of places are whose, and who moves when that changes.

A kernel finds an expert by its number times its size, so a place begins at a multiple of that. Places of one size lie
together, a zone. Zones follow each other in the order of sizes, the largest at the end of the memory:

    | pages | free | zone of the smallest experts | ... | zone of the largest ones |
                   ^ boundaries, which move       ^     ^

Memory may have several rooms, with pages between them; a zone may go over several. Where a zone has no place left and
there is room elsewhere, boundaries move, and experts that lie across one move within their own zone. So any experts
find places as long as they take no more bytes than `guaranteed`. Knows numbers, no memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd
from typing import NamedTuple

from ...policies.protocol import Key

Room = tuple[int, int]  # bytes [first, last) of a memory


class Move(NamedTuple):
    """An expert goes from a place to another one of its size. Of several the first goes first."""

    size: int
    key: Key
    old: int
    new: int


def waste(sizes: Sequence[int]) -> int:
    """Most bytes that one beginning of a zone, or end of a room, may cost: none for experts of one size."""
    return max(sizes) - gcd(*sizes)


def guaranteed(rooms: Sequence[Room], sizes: Sequence[int]) -> int:
    """Bytes of experts that always find places, whichever they are. sizes: all that there are, each once."""
    step, lost, total = gcd(*sizes), waste(sizes), 0
    for number, (first, last) in enumerate(rooms):
        whole = max(0, last // step - -(-first // step)) * step
        total += max(0, whole - lost * (1 + (number > 0)))
    return max(0, total - lost * (len(sizes) - 1))


def dealt(least: Mapping[int, int], most: Mapping[int, int], nbytes: int) -> dict[int, int]:
    """By size how many places: at least so many, and what is left of the bytes to all in turn, up to so many."""
    found = dict(least)
    left = nbytes - sum(size * count for size, count in found.items())
    while growing := [size for size in found if found[size] < most[size] and size <= left]:
        each = max(1, left // sum(growing))
        for size in growing:
            more = min(each, most[size] - found[size], left // size)
            found[size] += more
            left -= more * size
    return found


class Zones:
    """most: by size how many experts there are. Nothing has a place before `keep` says where there is room."""

    def __init__(self, most: Mapping[int, int]) -> None:
        self.most = dict(sorted(most.items()))
        self.sizes = list(self.most)
        self.rooms: list[Room] = []
        self.places: dict[int, list[range]] = {size: [] for size in self.sizes}
        self.taken: dict[int, dict[int, Key]] = {size: {} for size in self.sizes}
        self.free: dict[int, list[int]] = {size: [] for size in self.sizes}  # the last one is taken first

    def count(self, size: int) -> int:
        """Places of a size."""
        return sum(map(len, self.places[size]))

    @property
    def nbytes(self) -> int:
        """Of all places."""
        return sum(size * self.count(size) for size in self.sizes)

    def keep(self, rooms: Sequence[Room], coming: Mapping[int, int] | None = None) -> list[Move]:
        """Places are there from now on, and nowhere else. coming: by size how many will be taken first."""
        self.rooms = list(rooms)
        return self._arrange(coming or {})

    def take(self, size: int, key: Key) -> tuple[int, list[Move]]:
        """The number of a place, and who moves before it is one. The caller has seen to it that there is room."""
        moves = [] if self.free[size] else self._arrange({size: 1})
        number = self.free[size].pop()
        self.taken[size][number] = key
        return number, moves

    def give_back(self, size: int, number: int) -> None:
        """Nobody is there any more."""
        del self.taken[size][number]
        self.free[size].append(number)

    def _arrange(self, more: Mapping[int, int]) -> list[Move]:
        """Boundaries are drawn anew: zones have place for those that are there, for so many more, and share what is
        left. Who moves."""
        least = {size: len(self.taken[size]) + more.get(size, 0) for size in self.sizes}
        places = self._packed(dealt(least, self.most, guaranteed(self.rooms, self.sizes))) or self._packed(least)
        assert places is not None, f"{least} experts by size in {self.rooms}"
        order, self.places = self._order(places), places
        moves = [move for size in order for move in self._move(size)]
        for size in self.sizes:
            there = self.taken[size]
            self.free[size] = sorted(n for run in places[size] for n in run if n not in there)
        return moves

    def _packed(self, counts: Mapping[int, int]) -> dict[int, list[range]] | None:
        """So many places of each size, from the end of the memory down; None where they have no room."""
        found, rooms, at = {}, list(self.rooms), self.rooms[-1][1] if self.rooms else 0
        for size in reversed(self.sizes):
            left, runs = counts[size], []
            while left and rooms:
                first, last = rooms[-1]
                end = min(at, last) // size
                begin = max(end - left, -(-first // size))
                if begin < end:
                    runs.append(range(begin, end))
                    left, at = left - (end - begin), begin * size
                if left:
                    rooms.pop()
            if left:
                return None
            found[size] = runs
        return found

    def _order(self, places: Mapping[int, list[range]]) -> list[int]:
        """Sizes in the order in which zones may go from where they are to other places: none into a neighbour's that
        has not gone yet."""
        old, new, order = self._begins(self.places), self._begins(places), []
        waiting = list(range(len(self.sizes)))
        while waiting:
            for number in waiting:
                is_behind_last = number + 1 in waiting and new[number + 1] > old[number + 1]
                is_behind_first = number - 1 in waiting and new[number] < old[number]
                if not is_behind_last and not is_behind_first:
                    order.append(self.sizes[number])
                    waiting.remove(number)
                    break
        return order

    def _begins(self, places: Mapping[int, list[range]]) -> list[int]:
        """By number of a size the first byte of its zone; of one without places that of the next one."""
        found, at = [], self.rooms[-1][1] if self.rooms else 0
        for size in reversed(self.sizes):
            at = min([at, *(run.start * size for run in places[size])])
            found.append(at)
        return found[::-1]

    def _move(self, size: int) -> list[Move]:
        """Those of a size that have no place any more go to free ones."""
        there, runs = self.taken[size], self.places[size]
        out = sorted(n for n in there if not any(n in run for run in runs))
        if not out:
            return []
        free = sorted((n for run in runs for n in run if n not in there), reverse=True)
        moves = [Move(size, there[old], old, new) for old, new in zip(out, free, strict=False)]
        for move in moves:
            there[move.new] = there.pop(move.old)
        return moves
