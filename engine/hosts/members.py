"""Who computes which expert now: the nodes of a run, what becomes of a lost one's experts, and of one that comes back.

The coordinator is node 0, hosts count from 1, and IN_VRAM is what the coordinator's GPU has. `home` says whose an
expert is, `replicas` who else has it, `owners` who computes it at the moment where no more than one has it. Experts
keep no state, so that any node may take any row at any time.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import DeviceError
from .dealing import replicas
from .dealing.dealt import Dealt, share
from .dealing.replicas import Copies
from .joining.gathering import Candidate, Gathering, Share
from .link import Link
from .nodes import Nodes
from .sharing import Node, Owners, without

log = logging.getLogger("headrace")


class Members(Nodes):
    """links: of the hosts, in the order of their numbers. weights: of all machines, the
    coordinator's first. fallback: whether the coordinator has room to compute a lost host's experts from the model's
    files, if no host is left."""

    def __init__(self, dealt: Dealt, links: Sequence[Link], weights: Sequence[float], fallback: bool) -> None:
        super().__init__(links)
        self.dealt, self.fallback, self.weights = dealt, fallback, [*weights]
        self.home, self.replicas = dealt.home, dealt.copies
        self._own(dealt.home)

    def _own(self, owners: Owners) -> None:
        self.owners = owners
        self.owner_LE: list[Tensor] = [torch.tensor(row, dtype=torch.int64) for row in owners]
        self.copies: Copies = [
            {expert: there for expert in row if len(there := self._holders(layer, expert)) > 1}
            for layer, row in enumerate(self.replicas)
        ]

    def _holders(self, layer: int, expert: int) -> tuple[int, ...]:
        """The machines that have an expert and are there."""
        nodes = self.home[layer][expert], *self.replicas[layer].get(expert, ())
        return tuple(node for node in nodes if node <= 0 or self.links[node] is not None)

    def row_of(self, layer: int, ids: Sequence[int]) -> list[int]:
        """By expert of a layer who computes it in a request of these choices."""
        copies, row = self.copies[layer], self.owners[layer]
        return replicas.choose(row, copies, Counter(ids), self.weights) if copies else row

    def owners_of(self, layer: int, ids_N: Tensor) -> Tensor:
        """The same as int64 [experts]."""
        if not self.copies[layer]:
            return self.owner_LE[layer]
        return torch.tensor(self.row_of(layer, ids_N.tolist()), dtype=torch.int64)

    @property
    def alive(self) -> list[int]:
        """Numbers of the hosts that are there."""
        return [number for number, link in enumerate(self.links) if link is not None]

    def share(self, number: int) -> list[list[int]]:
        """The experts of a node by layer, copies included, as they were dealt."""
        return share(self.dealt, number)

    def lose(self, number: int, why: str) -> None:
        """A host is gone: its experts go to those that are left. Raises DeviceError where nobody can take them."""
        link = self.gone(number, why)
        others = self.alive
        copied = self._use_copies(number)
        experts = sum(row.count(number) for row in self.owners)
        if not others and not self.fallback and experts:
            log.warning("host %s was lost: %s", link.name, why)
            raise self.missing(number)
        numbers = others or [0]
        nodes = [Node(self.names[n], 0, self.weights[n]) for n in numbers]
        self._own(without(self.owners, number, nodes, numbers))
        takers = ", ".join(self.names[n] for n in numbers)
        more = f", and {copied} had a copy elsewhere" if copied else ""
        log.warning("host %s was lost: %s; its %d experts go to %s%s", link.name, why, experts, takers, more)

    def _use_copies(self, lost: int) -> int:
        """Experts of a lost host that others have are theirs at once; how many."""
        count, owners = 0, [list(row) for row in self.owners]
        for layer, row in enumerate(self.replicas):
            for expert in row:
                there = self._holders(layer, expert)
                if owners[layer][expert] == lost and there:
                    owners[layer][expert], count = there[0], count + 1
        self._own(owners)
        return count

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
            self.came(number, link)
            self._own([self._with(number, layer) for layer in range(len(self.home))])

    def _with(self, number: int, layer: int) -> list[int]:
        """The owners of a layer when a host has come back: of its own experts, and of copies that nobody else has."""
        found = list(self.owners[layer])
        for expert, home in enumerate(self.home[layer]):
            holders = self._holders(layer, expert)
            if home == number or (number in holders and found[expert] not in holders):
                found[expert] = number
        return found

    def place(self, candidate: Candidate) -> tuple[int, Share] | str:
        """The place of a host that comes late, and its share; or why there is none. Called by other threads."""
        number = self.seat(candidate)
        return number if isinstance(number, str) else (number, {"experts": self.share(number)})
