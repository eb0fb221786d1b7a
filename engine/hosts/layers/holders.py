"""Who holds which layers now: the nodes of a run, who takes those of one that is lost, and what one that comes back
gets.

The coordinator is node 0, hosts count from 1. `home` says which layers were dealt to a node, `now` which it holds.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from ....errors import DeviceError
from ...model.segment import Room, Run
from ..joining.gathering import Candidate, Share
from ..link import Link
from ..nodes import Nodes

log = logging.getLogger("headrace")


class Layers(NamedTuple):
    """What is held: runs that stay together, bytes of each layer with its cache, and the room of the caches. work:
    bytes that a pass takes besides."""

    units: list[Run]
    sizes: list[int]
    room: Room
    work: int

    def bytes(self, runs: Sequence[Run]) -> int:
        """Of these layers."""
        return sum(sum(self.sizes[first:last]) for first, last in runs)

    def share(self, runs: Sequence[Run]) -> Share:
        """What a host is told of them."""
        return {"layers": [list(run) for run in runs], "room": self.room.as_json(), "work": self.work}


class Holders(Nodes):
    """home: as dealt, by node. free: bytes that each node's layers may take, the coordinator's first."""

    def __init__(self, layers: Layers, home: list[list[Run]], links: Sequence[Link], free: Sequence[int]) -> None:
        super().__init__(links)
        self.layers, self.home, self.free = layers, home, list(free)
        self.now = [list(runs) for runs in home]
        self._route: list[tuple[int, Run]] | None = None

    @property
    def route(self) -> list[tuple[int, Run]]:
        """Nodes and their layers in the order of a pass; neighbouring runs of one node are one."""
        if self._route is None:
            found: list[tuple[int, Run]] = []
            for (first, last), node in sorted((run, node) for node, runs in enumerate(self.now) for run in runs):
                if found and found[-1][0] == node:
                    found[-1] = (node, (found[-1][1][0], last))
                else:
                    found.append((node, (first, last)))
            self._route = found
        return self._route

    def changed(self) -> None:
        """`now` is another."""
        self._route = None

    @property
    def orphans(self) -> list[Run]:
        """Layers that nobody holds."""
        held = sorted(run for runs in self.now for run in runs)
        edges = [(0, 0), *held, (len(self.layers.sizes),) * 2]
        return [(before[1], after[0]) for before, after in pairwise(edges) if before[1] < after[0]]

    def room(self, node: int) -> int:
        """Bytes that a node may still take."""
        return self.free[node] - self.layers.bytes(self.now[node])

    def lose(self, number: int, why: str) -> None:
        """A host is gone, and its layers with their cache."""
        link = self.gone(number, why)
        self.now[number] = []
        self.changed()
        log.warning("host %s was lost: %s", link.name, why)

    def taker(self, run: Run) -> tuple[int, Run]:
        """Who takes layers that nobody holds, as many of the first of them as one node can: a neighbour, so that no
        round trip is added, else who has most room. Raises DeviceError where nobody has room for the first ones."""
        nodes = [n for n, link in enumerate(self.links) if (link is not None or n == 0) and self.room(n) > 0]
        inside = [unit for unit in self.layers.units if run[0] <= unit[0] and unit[1] <= run[1]]
        for count in range(len(inside), 0, -1):
            part = run[0], inside[count - 1][1]
            able = [n for n in nodes if self.room(n) >= self.layers.bytes([part])]
            if able:
                return max(able, key=lambda n: (n > 0, self._is_beside(n, part), self.room(n), -n)), part
        raise self.missing(run)

    def _is_beside(self, node: int, run: Run) -> bool:
        return any(last == run[0] or first == run[1] for first, last in self.now[node])

    def missing(self, run: Run) -> DeviceError:
        """What to say where layers cannot be had."""
        lost = [n for n in range(1, len(self.home)) if self.links[n] is None]
        names = " and ".join(f"host {self.names[n]} was lost ({self.why[n]})" for n in lost)
        return DeviceError(
            f"{names or 'no host is left'}, and nobody has room for layers {run[0]} to {run[1] - 1}: start headrace "
            "host there again, or restart the coordinator with more RAM"
        )

    def take_in(self, number: int, link: Link) -> list[int]:
        """Gives a host that came back its own layers, which it has loaded; who has others now than before."""
        self.came(number, link)
        given = []
        for node, runs in enumerate(self.now):
            left = [run for run in runs if node == number or not self._is_of(number, run)]
            if len(left) < len(runs):
                self.now[node] = left
                given.append(node)
        self.now[number] = list(self.home[number])
        self.free[number] = max(0, link.room + self.layers.bytes(self.home[number]) - self.layers.work)
        self.changed()
        return given

    def _is_of(self, number: int, run: Run) -> bool:
        return any(first <= run[0] and run[1] <= last for first, last in self.home[number])

    def place(self, candidate: Candidate) -> tuple[int, Share] | str:
        """The place of a host that comes late, and its share; or why there is none. Called by other threads."""
        number = self.seat(candidate)
        return number if isinstance(number, str) else (number, self.layers.share(self.home[number]))
