"""Parts of a pass on their way through the machines that hold its layers: each goes on as soon as it can, and what the
coordinator has to do for one it does while hosts are at work on others.

A machine takes parts in the order in which they come, so that a part of a prompt finds the keys of the one before it.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import torch
from torch import Tensor

from ....kernels.passes.tally import Tally
from ....loaders.spec import MoeSpec
from ...ledger.pass_bytes import HIDDEN, ROUTING
from ...ledger.passes import NET, Bytes, add_bytes
from ..exchange import STEP
from ..link import Link
from ..messages import passes
from ..messages.frames import Broken, Kind
from ..messages.passes import Done, Task
from .parts import Part

if TYPE_CHECKING:
    from .net_layers import NetLayers


class Due(NamedTuple):
    """What a host was asked for: which part, at which stop of the route, and when."""

    node: int
    part: int
    stop: int
    task: Task
    since: float


class Flow:
    """One pass. net: whose it is; route: nodes and their layers in the order of a pass."""

    def __init__(self, net: NetLayers, parts: Sequence[Part], is_by_row: bool, wants_choices: bool) -> None:
        self.net, self.parts, self.route = net, parts, list(net.holders.route)
        self.is_by_row, self.wants_choices = is_by_row, wants_choices
        self.read: Bytes = {}
        self.mine = deque[tuple[int, int, Tensor]]()  # part, stop, streams: what the coordinator is to run
        self.due: dict[int, Due] = {}
        self.found: dict[int, Tensor] = {}  # by part what came out at the end
        self.chosen: dict[tuple[int, int], Tensor] = {}  # by layer and part
        self.waited = 0.0

    def run(self, x_TX: Tensor, tally: Tally | None) -> Tensor:
        """Streams [T, X] in, streams of the wanted rows out. Raises CacheLost, DeviceError."""
        for number, part in enumerate(self.parts):
            self._go_on(number, 0, x_TX[part.first : part.last])
        while len(self.found) < len(self.parts):
            if self.mine:
                self._run_here(*self.mine.popleft())
            start = time.perf_counter()
            self._send_and_receive(0.0 if self.mine else STEP)
            self.waited += time.perf_counter() - start
        if tally is not None:
            self._count(tally)
        streams = [self.found[number] for number in range(len(self.parts))]
        return streams[0] if len(streams) == 1 else torch.cat(streams)

    def _go_on(self, part: int, stop: int, x_TX: Tensor) -> None:
        """A part comes to a stop of the route, or to its end."""
        if stop == len(self.route):
            self.found[part] = x_TX
        elif self.route[stop][0] == 0:
            self.mine.append((part, stop, x_TX))
        else:
            self._ask(part, stop, x_TX)

    def _task(self, part: int, stop: int, x_TX: Tensor) -> Task:
        node, (first, last) = self.route[stop]
        copies, self.net.copies[node] = self.net.copies[node], []
        it = self.parts[part]
        return Task(first, last, x_TX, it.places, it.rows_R, copies, self.is_by_row, self.wants_choices)

    def _run_here(self, part: int, stop: int, x_TX: Tensor) -> None:
        task, own = self._task(part, stop, x_TX), self.net.own
        done = own.run(task)
        add_bytes(self.read, own.read(task, self.parts[part].spans, done.distinct))
        self._took(part, stop, task, done)

    def _ask(self, part: int, stop: int, x_TX: Tensor) -> None:
        """Sends a part to a host."""
        node, task = self.route[stop][0], self._task(part, stop, x_TX)
        link, wire, call = self._link(node), self.net.parts.wire, self.net.next_call()
        most = passes.answer_bytes(self._shapes(task)) + self._rows(task) * wire.row(self.net.width)
        link.limit = max(link.limit, most)
        link.queue(passes.task_parts(task, wire, call))
        self.due[call] = Due(node, part, stop, task, time.monotonic())
        self._write(node)

    def _link(self, node: int) -> Link:
        link = self.net.holders.links[node]
        assert link is not None, "a host that is lost is asked"
        return link

    def _send_and_receive(self, seconds: float) -> None:
        """Until something came, or more can be sent, at most so long."""
        nodes = {one.node for one in self.due.values()}
        poller = select.poll()
        for node in nodes:
            link = self._link(node)
            poller.register(link.fileno(), select.POLLIN | (select.POLLOUT if link.out else 0))
        if nodes:
            poller.poll(seconds * 1000)
        for node in sorted(nodes):
            self._write(node)
            self._receive(node)
        self._look_at_the_clock()

    def _write(self, node: int) -> None:
        try:
            self._link(node).write()
        except OSError as error:
            self._lose(node, error.strerror or str(error))

    def _receive(self, node: int) -> None:
        try:
            for header, body in self._link(node).read():
                self._answered(node, header.kind, header.call, body)
        except OSError as error:
            self._lose(node, error.strerror or str(error))
        except Broken as error:
            self._lose(node, str(error))

    def _answered(self, node: int, kind: Kind, call: int, body: bytearray) -> None:
        """Raises Broken for what was not asked; an answer that nobody waits for is of a pass that was given up."""
        if kind not in (Kind.HIDDEN, Kind.HELD):
            raise Broken("it answered what it was not asked")
        one = self.due.get(call)
        if one is None or kind is not Kind.HIDDEN:
            return
        if one.node != node:
            raise Broken("it answered what it was not asked")
        del self.due[call]
        wire, shapes, rows = self.net.parts.wire, self._shapes(one.task), self._rows(one.task)
        done = passes.read_answer(body, wire, self.net.width, shapes, rows)
        hidden = (len(one.task.x_TX) + rows) * wire.row(self.net.width)
        besides = passes.answer_bytes(shapes) + passes.places_bytes(one.task)
        add_bytes(self.read, {NET: {HIDDEN: hidden, ROUTING: besides}})
        self._took(one.part, one.stop, one.task, done)

    def _took(self, part: int, stop: int, task: Task, done: Done) -> None:
        """What came of a part at a stop."""
        for layer, ids_TK in enumerate(done.ids, task.first):
            if ids_TK is not None:
                self.chosen[layer, part] = ids_TK
        self._go_on(part, stop + 1, done.x_RX)

    def _look_at_the_clock(self) -> None:
        """Loses a host that owes something and was silent for too long."""
        now, timeout = time.monotonic(), self.net.parts.timeout
        for one in list(self.due.values()):
            if now - max(self._link(one.node).heard, one.since) > timeout:
                self._lose(one.node, f"no word for {timeout:g} s")

    def _lose(self, node: int, why: str) -> NoReturn:
        self.net.lose(node, why)

    def _rows(self, task: Task) -> int:
        """How many go on behind these layers."""
        is_end = task.last == len(self.net.spec.layers)
        return len(task.rows_R) if is_end and task.rows_R is not None else len(task.x_TX)

    def _shapes(self, task: Task) -> list[tuple[int, int]]:
        """Of each layer the tokens whose choices come back, and how many each has."""
        found = []
        for i in range(task.first, task.last):
            ffn = self.net.spec.layers[i].ffn
            tokens = self._rows(task) if i == len(self.net.spec.layers) - 1 else len(task.x_TX)
            found.append((tokens, ffn.top_k) if task.chosen and isinstance(ffn, MoeSpec) else (0, 0))
        return found

    def _count(self, tally: Tally) -> None:
        """Takes in what each layer's tokens chose, in their order."""
        nothing = torch.empty(0)
        for layer in sorted({layer for layer, _ in self.chosen}):
            ids = [self.chosen[layer, part] for part in range(len(self.parts)) if (layer, part) in self.chosen]
            tally.take(layer, (torch.cat(ids), nothing))
