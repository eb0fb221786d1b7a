"""The machines of a run: which are there, who is gone and why, and who may take whose place.

The coordinator is node 0, hosts count from 1. What a node has to compute is not known here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from .joining.gathering import Candidate
from .link import Link

log = logging.getLogger("headrace")
FULL = "all {count} places are taken by hosts that are there: end one of them first"


class Nodes:
    """links: of the hosts, in the order of their numbers; later None where one is gone."""

    def __init__(self, links: Sequence[Link]) -> None:
        self.names = ["the coordinator", *(link.name for link in links)]
        self.links: list[Link | None] = [None, *links]
        self.why = [""] * len(self.links)
        self.lock = threading.Lock()
        self.coming: set[int] = set()
        self.losses, self.returns = 0, 0

    def gone(self, number: int, why: str) -> Link:
        """Notes that a host is lost; the link that it had."""
        link = self.links[number]
        assert link is not None, "lost twice"
        link.close()
        self.links[number], self.why[number] = None, why
        self.losses += 1
        return link

    def came(self, number: int, link: Link) -> None:
        """Notes that a host is there again, or another in its place."""
        old = self.links[number]
        if old is not None:
            old.close()
        back = link.name == self.names[number]
        self.links[number], self.names[number], self.why[number] = link, link.name, ""
        self.returns += 1
        with self.lock:
            self.coming.discard(number)
        log.warning("host %s is %s", link.name, "back" if back else "new, in the place of one that was lost")

    def seat(self, candidate: Candidate) -> int | str:
        """The number of a host that comes late: its own, or that of one that is gone; or why there is none. Called by
        other threads."""
        with self.lock:
            free = [number for number in range(1, len(self.links)) if self._is_free(number)]
            if not free:
                return FULL.format(count=len(self.links) - 1)
            number = next((n for n in free if self.names[n] == candidate.name), free[0])
            self.coming.add(number)
        return number

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
