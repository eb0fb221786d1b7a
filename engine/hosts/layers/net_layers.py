"""All layers of a model on several machines, as the decoder's `Beyond`: a pass goes from one to the next and back.

    coordinator: its own layers -> host 1 -> coordinator -> host 2 -> coordinator: head

A pass of many tokens goes in parts, so that one machine computes one while the next has the one before (`flow.py`).

Every machine has the cache of its own layers; pages and slots have the same numbers everywhere, so that sharing of
prompts, copies of states and preemption need no word but the passes themselves. Who is silent for `timeout` seconds
while an answer is due, or whose connection ends, is lost with its cache: others load its layers, and every sequence is
computed anew.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, NoReturn

from torch import Tensor

from ....errors import HeadraceError
from ....kernels.passes.tally import Tally
from ...bandwidth_model.network.hops import Hop, Network
from ...bandwidth_model.network.stops import Route, Stop
from ...ledger.passes import NET, Bytes
from ...ledger.timers import Timers
from ...model.batch import Inputs
from ...model.segment import CacheLost, Run, row_width, widened
from ...speculation.row_kernels import is_by_row
from ..exchange import STEP
from ..joining.gathering import Gathering
from ..link import Link
from ..messages import frames
from ..messages.frames import Broken, Kind
from ..messages.rows import WireFormat
from . import how_many, stop_costs
from .flow import Flow
from .held import HeldLayers
from .holders import Holders
from .parts import cut
from .stop_costs import Rows

PATIENCE = 5.0  # seconds that a host which came back waits for a moment when nothing runs
log = logging.getLogger("headrace")


class Ready(NamedTuple):
    """What a run is made of. own: the coordinator's layers."""

    holders: Holders
    gathering: Gathering
    own: HeldLayers
    wire: WireFormat
    timeout: float


class NetLayers:
    """`parts`: who holds what."""

    def __init__(self, parts: Ready, timers: Timers) -> None:
        self.parts, self.timers = parts, timers
        self.holders, self.own, self.spec = parts.holders, parts.own, parts.own.spec
        self.width, self.call, self.is_lost = row_width(self.spec), 0, False
        self.copies: list[list[tuple[int, int]]] = [[] for _ in parts.holders.names]
        self.network, self.stops = Network(wire=parts.wire.name, hops={}), dict[int, Stop]()

    def begin(self, is_idle: bool) -> bool:
        """Takes in a host that came back, when nothing is lost by it, layers are missing or it has waited for long;
        gives out layers that nobody holds. Whether caches are empty now. Raises DeviceError where layers cannot be
        had."""
        while (is_idle or self._has_waited) and self._take_in():
            pass
        self._deal_anew()
        lost, self.is_lost = self.is_lost, False
        if lost:
            self.copies = [[] for _ in self.copies]
            self.network.route = self._route()
        return lost

    def measure(self, most_tokens: int, most_sequences: int, rows: Rows) -> None:
        """What layers take on each machine, before the first pass. Raises DeviceError where a host is lost."""
        self.stops = stop_costs.measure(self, most_tokens, most_sequences, rows)
        self.network.route = self._route()

    def hop(self, node: int) -> Hop | None:
        """A host as it was measured when it joined; None: the coordinator, or one that is gone."""
        link = self.holders.links[node]
        return None if link is None else link.figures.hop(link.name, [])

    def _route(self) -> Route | None:
        """The machines of a pass with what they were measured to take; None where one was not."""
        route = self.holders.route
        if any(node not in self.stops for node, _ in route):
            return None
        stops = [self.stops[node].times(last - first) for node, (first, last) in route]
        hops = [self.hop(node) for node, _ in route]
        found = tuple(replace(stop, hop=hop) for stop, hop in zip(stops, hops, strict=True))
        return Route(stops=found, row=self.parts.wire.row(self.width))

    def copy_state(self, slot: int, to: int) -> None:
        """Copies a recurrent state: here now, on a host before its next pass."""
        self.own.copy_state(slot, to)
        for copies in self.copies[1:]:
            copies.append((slot, to))

    def run(self, x_TX: Tensor, inputs: Inputs, tally: Tally | None) -> tuple[Tensor, Bytes]:
        """All layers; see `Beyond`. Raises CacheLost where a host was lost and others have its layers now, DeviceError
        where nobody has room for them."""
        parts = cut(inputs, how_many.parts(inputs.spans, len(self.holders.route), self.network.route))
        flow = Flow(self, parts, is_by_row(self.own.ops), tally is not None)
        x_TX = flow.run(x_TX[:, : self.width].contiguous(), tally)
        self.timers.spend(NET, flow.waited)
        return widened(self.spec, x_TX), flow.read

    def next_call(self) -> int:
        """The number of the next request."""
        self.call = self.call + 1 & 0xFFFFFFFF
        return self.call

    def _answer(self, node: int, kind: Kind, parts: list[memoryview]) -> bytearray:
        """Sends the request of the last number, and waits for what answers it. Loses a host that does not."""
        link, since = self.holders.links[node], time.monotonic()
        assert link is not None, "a host that is lost is asked"
        link.queue(parts)
        try:
            while True:
                link.write()
                _wait(link)
                for header, body in link.read():
                    if header.kind is kind and header.call == self.call:
                        return body
                    if header.kind not in (Kind.HIDDEN, Kind.HELD):  # else of a pass that was given up
                        raise Broken("it answered what it was not asked")
                if time.monotonic() - max(link.heard, since) > self.parts.timeout:
                    raise Broken(f"no word for {self.parts.timeout:g} s")
        except OSError as error:
            self.lose(node, error.strerror or str(error))
        except Broken as error:
            self.lose(node, str(error))

    def lose(self, node: int, why: str) -> NoReturn:
        """Its layers go to others. Always raises: CacheLost, or DeviceError where nobody can take them."""
        name = self.holders.names[node]
        self.holders.lose(node, why)
        self.is_lost = True
        self._deal_anew()
        raise CacheLost(f"host {name} was lost ({why}): its layers are on other machines now")

    @property
    def _has_waited(self) -> bool:
        """Whether a host that came back has done so for long enough: a service that is never idle is to have it."""
        there = self.parts.gathering.arrivals.queue
        return bool(there) and time.monotonic() - there[0][1].heard > PATIENCE

    def _take_in(self) -> bool:
        """Gives a host that came back its layers; False where none did."""
        arrivals = self.parts.gathering.arrivals
        if arrivals.empty():
            return False
        given = self.holders.take_in(*arrivals.get())
        self.is_lost = True
        for node in given:
            self._hold(node, self.holders.now[node])
        return True

    def _deal_anew(self) -> None:
        """Gives out layers that nobody holds, until there are none: first to who came back, and has them."""
        while orphans := self.holders.orphans:
            if not self._take_in():
                node, run = self.holders.taker(orphans[0])
                self._hold(node, [*self.holders.now[node], run])

    def _hold(self, node: int, wanted: Sequence[Run]) -> None:
        """Lets a node hold these layers, and no others; one that cannot has no more room from now on."""
        runs = sorted(wanted)
        error = self._hold_here(runs) if node == 0 else self._hold_there(node, runs)
        if error:
            if node == 0 or self.holders.links[node] is not None:  # else it was said that the host is lost
                log.warning("%s cannot take layers: %s", self.holders.names[node], error)
            self.holders.free[node] = self.holders.layers.bytes(self.holders.now[node])
            return
        self.holders.now[node] = runs
        self.holders.changed()
        log.warning("layers %s are on %s now", ", ".join(map(named, runs)) or "none", self.holders.names[node])

    def _hold_here(self, runs: Sequence[Run]) -> str:
        try:
            self.own.hold(runs)
        except (HeadraceError, OSError) as error:
            return str(error)
        return ""

    def _hold_there(self, node: int, runs: Sequence[Run]) -> str:
        said = {"layers": [list(run) for run in runs]}
        parts = frames.json_parts(Kind.HOLD, said, self.next_call())
        try:
            return str(frames.as_json(self._answer(node, Kind.HELD, parts)).get("error", ""))
        except CacheLost as error:  # it was lost meanwhile, and all is dealt out again
            return str(error)

    def close(self) -> None:
        """Ends connections; hosts wait for the next coordinator then."""
        self.parts.gathering.close()
        self.holders.close()


def named(run: Run) -> str:
    """For people."""
    return f"{run[0]}" if run[1] == run[0] + 1 else f"{run[0]} to {run[1] - 1}"


def _wait(link: Link) -> None:
    """Until something came, or more can be sent."""
    poller = select.poll()
    poller.register(link.fileno(), select.POLLIN | (select.POLLOUT if link.out else 0))
    poller.poll(STEP * 1000)
