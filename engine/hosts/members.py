"""Who computes which expert now: the nodes of a run, what becomes of a lost one's experts, and of one that comes back.

The coordinator is node 0, hosts count from 1. `home` says whose an expert is, `owners` who computes it at the moment.
Experts keep no state, so that any node may take any row at any time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import DeviceError
from .joining.gathering import Candidate, Gathering
from .link import Link
from .sharing import Node, Owners, without

log = logging.getLogger("headrace")
FULL = "all {count} places are taken by hosts that are there: end one of them first"


class Members:
    """home: as dealt. links: of the hosts, in the order of their numbers. fallback: whether the coordinator has room to
    compute a lost host's experts from the model's files, if no host is left."""

    def __init__(self, home: Owners, links: Sequence[Link], weights: Sequence[float], fallback: bool) -> None:
        self.home, self.fallback, self.weights = home, fallback, [0.0, *weights]
        self.names = ["the coordinator", *(link.name for link in links)]
        self.links: list[Link | None] = [None, *links]
        self.why = [""] * len(self.links)
        self.lock = threading.Lock()
        self.coming: set[int] = set()
        self.losses, self.returns = 0, 0
        self._own(home)

    def _own(self, owners: Owners) -> None:
        self.owners = owners
        self.owner_LE: list[Tensor] = [torch.tensor(row, dtype=torch.int64) for row in owners]

    @property
    def alive(self) -> list[int]:
        """Numbers of the hosts that are there."""
        return [number for number, link in enumerate(self.links) if link is not None]

    def share(self, number: int) -> list[list[int]]:
        """The experts of a node by layer, as they were dealt."""
        return [[expert for expert, owner in enumerate(row) if owner == number] for row in self.home]

    def lose(self, number: int, why: str) -> None:
        """A host is gone: its experts go to those that are left. Raises DeviceError where nobody can take them."""
        link = self.links[number]
        assert link is not None, "lost twice"
        link.close()
        self.links[number], self.why[number] = None, why
        self.losses += 1
        others = self.alive
        experts = sum(row.count(number) for row in self.owners)
        if not others and not self.fallback:
            log.warning("host %s was lost: %s", link.name, why)
            raise self.missing(number)
        numbers = others or [0]
        nodes = [Node(self.names[n], 0, self.weights[n]) for n in numbers]
        self._own(without(self.owners, number, nodes, numbers))
        takers = ", ".join(self.names[n] for n in numbers)
        log.warning("host %s was lost: %s; its %d experts go to %s", link.name, why, experts, takers)

    def missing(self, number: int) -> DeviceError:
        """What to say where a node's experts cannot be had."""
        name = self.names[number]
        return DeviceError(
            f"host {name} was lost ({self.why[number]}) and nobody has room for its experts: start headrace host there "
            "again, or restart the coordinator with more RAM"
        )

    def take_in(self, gathering: Gathering) -> None:
        """Gives hosts that came back their own experts. To be called between two passes."""
        while not gathering.arrivals.empty():
            number, link = gathering.arrivals.get()
            old = self.links[number]
            if old is not None:
                old.close()
            back = link.name == self.names[number]
            self.links[number], self.names[number], self.why[number] = link, link.name, ""
            rows = zip(self.home, self.owners, strict=True)
            self._own([[number if h == number else now for h, now in zip(*row, strict=True)] for row in rows])
            self.returns += 1
            with self.lock:
                self.coming.discard(number)
            log.warning("host %s is %s, generation %d", link.name, "back" if back else "new", link.generation)

    def place(self, candidate: Candidate) -> tuple[int, list[list[int]]] | str:
        """A place for a host that comes late: its own, or that of one that is gone. Called by other threads."""
        with self.lock:
            free = [number for number in range(1, len(self.links)) if self._is_free(number)]
            if not free:
                return FULL.format(count=len(self.links) - 1)
            mine = [number for number in free if self.names[number] == candidate.name]
            number = (mine or free)[0]
            self.coming.add(number)
        return number, self.share(number)

    def gave_up(self, number: int) -> None:
        """One that was to come did not."""
        with self.lock:
            self.coming.discard(number)

    def _is_free(self, number: int) -> bool:
        link = self.links[number]
        return number not in self.coming and (link is None or link.is_gone)

    def close(self) -> None:
        for link in self.links:
            if link is not None:
                link.close()
