"""All layers of a model on several machines, as the decoder's `Beyond`: a pass goes from one to the next and back.

    coordinator: its own layers -> host 1 -> coordinator -> host 2 -> coordinator: head

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
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from ....errors import HeadraceError
from ....kernels.passes.tally import Tally
from ....loaders.spec import MoeSpec
from ...ledger.pass_bytes import HIDDEN, ROUTING
from ...ledger.passes import NET, Bytes, add_bytes
from ...ledger.timers import Timers
from ...model.batch import Inputs
from ...model.segment import CacheLost, Run, row_width, widened
from ...speculation.row_kernels import is_by_row
from ..exchange import STEP
from ..joining.gathering import Gathering
from ..link import Link
from ..messages import frames, passes
from ..messages.frames import Broken, Kind
from ..messages.passes import Done, Task
from ..messages.rows import WireFormat
from .held import HeldLayers
from .holders import Holders

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
        return lost

    def copy_state(self, slot: int, to: int) -> None:
        """Copies a recurrent state: here now, on a host before its next pass."""
        self.own.copy_state(slot, to)
        for copies in self.copies[1:]:
            copies.append((slot, to))

    def run(self, x_TX: Tensor, inputs: Inputs, tally: Tally | None) -> tuple[Tensor, Bytes]:
        """All layers; see `Beyond`. Raises CacheLost where a host was lost and others have its layers now, DeviceError
        where nobody has room for them."""
        read: Bytes = {}
        rows_R, by_row = inputs.wanted_rows, is_by_row(self.own.ops)
        x_TX = x_TX[:, : self.width].contiguous()
        for node, (first, last) in self.holders.route:
            copies, self.copies[node] = self.copies[node], []
            task = Task(first, last, x_TX, inputs.places, rows_R, copies, by_row, tally is not None)
            if node == 0:
                done = self.own.run(task)
                add_bytes(read, self.own.read(task, inputs.spans, done.distinct))
            else:
                start = time.perf_counter()
                done = self._ask(node, task, read)
                self.timers.spend(NET, time.perf_counter() - start)
            _count(tally, first, done)
            x_TX = done.x_RX
        return widened(self.spec, x_TX), read

    def _ask(self, node: int, task: Task, read: Bytes) -> Done:
        """A pass through a host's layers; what was sent is added to `read`."""
        wire, shapes, rows = self.parts.wire, self._shapes(task), self._rows(task)
        besides = passes.answer_bytes(shapes)
        parts = passes.task_parts(task, wire, self.call + 1 & 0xFFFFFFFF)
        body = self._answer(node, Kind.HIDDEN, parts, besides + rows * wire.row(self.width))
        try:
            done = passes.read_answer(body, wire, self.width, shapes, rows)
        except Broken as error:
            self._lose(node, str(error))
        hidden = (len(task.x_TX) + rows) * wire.row(self.width)
        add_bytes(read, {NET: {HIDDEN: hidden, ROUTING: besides + passes.places_bytes(task)}})
        return done

    def _rows(self, task: Task) -> int:
        """How many go on behind these layers."""
        is_end = task.last == len(self.spec.layers)
        return len(task.rows_R) if is_end and task.rows_R is not None else len(task.x_TX)

    def _shapes(self, task: Task) -> list[tuple[int, int]]:
        """Of each layer the tokens whose choices come back, and how many each has."""
        found = []
        for i in range(task.first, task.last):
            ffn = self.spec.layers[i].ffn
            tokens = self._rows(task) if i == len(self.spec.layers) - 1 else len(task.x_TX)
            found.append((tokens, ffn.top_k) if task.chosen and isinstance(ffn, MoeSpec) else (0, 0))
        return found

    def _answer(self, node: int, kind: Kind, parts: list[memoryview], most: int) -> bytearray:
        """Sends a request, and waits for what answers it. Loses a host that does not."""
        link, since = self.holders.links[node], time.monotonic()
        assert link is not None, "a host that is lost is asked"
        self.call = self.call + 1 & 0xFFFFFFFF
        link.limit = max(link.limit, most)
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
            self._lose(node, error.strerror or str(error))
        except Broken as error:
            self._lose(node, str(error))

    def _lose(self, node: int, why: str) -> NoReturn:
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
        parts = frames.json_parts(Kind.HOLD, said, self.call + 1 & 0xFFFFFFFF)
        try:
            return str(frames.as_json(self._answer(node, Kind.HELD, parts, 0)).get("error", ""))
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


def _count(tally: Tally | None, first: int, done: Done) -> None:
    """Takes in what the layers from `first` on chose."""
    if tally is None:
        return
    nothing = torch.empty(0)
    for i, ids_TK in enumerate(done.ids, first):
        if ids_TK is not None:
            tally.take(i, (ids_TK, nothing))
