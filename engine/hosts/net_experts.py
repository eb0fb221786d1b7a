"""The experts of all layers on several machines, as an `ExpertBackend`.

    submit    rows go to every host that has experts of the layer; what the coordinator has it computes meanwhile
    collect   rows of the choices come back, in any order; their sum has the order of choices, as on one machine

A host that is silent for `timeout` seconds while an answer is due, or whose connection ends, is lost: what it owes is
asked of whoever has its experts now, and the layer goes on. With float32 on the wire the sum has the bits of one call
that finds all experts in one bank (`experts/disk/rows.py`), whoever computed which row.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from torch import Tensor

from ...kernels import Ops
from ..bandwidth_model.network.hops import Network
from ..experts.backend import Chosen, Job, Wired
from ..ledger.pass_bytes import EXPERTS, ROUTING
from ..ledger.passes import CPU_DRAM, NET, LayerWork
from ..ledger.timers import Timers
from .exchange import Exchange
from .joining.gathering import Gathering
from .members import Members
from .messages.rows import WireFormat
from .shelf import Shelf


class Ready(NamedTuple):
    """What a run with hosts is made of."""

    members: Members
    gathering: Gathering
    shelf: Shelf
    wire: WireFormat
    timeout: float


class NetExperts:
    """`parts`: who computes what; ops: of the CPU. network: the hosts as they were measured."""

    def __init__(self, parts: Ready, ops: Ops, timers: Timers) -> None:
        self.parts, self.ops, self.timers = parts, ops, timers
        self.members, self.shelf = parts.members, parts.shelf
        stored = parts.shelf.files.stored
        self.number = {layer: number for number, layer in enumerate(stored.layers)}
        self.last, self.call = -1, 0
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="headrace-wire")
        self.network = Network(wire=parts.wire.name, hops={})
        self._renew()
        self.exchange: Exchange | None = None
        self.sending: Future[None] | None = None

    @property
    def is_asked(self) -> bool:
        """Whether a layer is under way."""
        return self.exchange is not None

    def submit(self, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, *, is_partial: bool = False) -> Job:
        """Starts a layer; shapes as of `CpuExperts.submit`. is_partial: ids may be -1, of choices that others
        compute. Raises DeviceError where experts cannot be had."""
        number = self.number[layer]
        self.settle()
        if number <= self.last:
            self._take_in()
        self.last = number
        self.exchange = Exchange(self.parts, self.ops, number, x_TD, ids_TK, weights_TK, self.call)
        if is_partial:
            self.exchange.leave_out()
        self.exchange.ask_all()
        if not self.exchange.is_sent:
            self.sending = self.worker.submit(self.exchange.run, until_sent=True)
        self.exchange.compute_own()
        return Job([], Chosen(layer, ids_TK, weights_TK=weights_TK))

    def _take_in(self) -> None:
        """Hosts that came back are there from this pass on."""
        returns = self.members.returns
        self.members.take_in(self.parts.gathering)
        if self.members.returns != returns:
            self._renew()

    def _renew(self) -> None:
        """Figures of the hosts that are there."""
        formats = {name for layout in self.shelf.files.layouts for name in layout.bytes_by_format}
        for number, link in enumerate(self.members.links):
            if link is not None:
                self.network.hops[number] = link.figures.hop(link.name, formats)

    def settle(self) -> None:
        """Nothing of another layer is under way: an error may have come between submit and collect."""
        sending, self.sending = self.sending, None
        if sending is not None:
            sending.exception()
        if self.exchange is not None:
            self.call = self.exchange.call
            self.exchange = None

    def collect(self, job: Job) -> tuple[Tensor, Chosen]:
        """float32 [tokens, hidden]. Raises DeviceError where experts cannot be had."""
        exchange = self.exchange
        assert exchange is not None, "collect without submit"
        start = time.perf_counter()
        if self.sending is not None:
            sending, self.sending = self.sending, None
            sending.result()
        exchange.run()
        exchange.compute_own()  # of a host that was lost while its request was sent
        self.timers.spend(NET, time.perf_counter() - start)
        y_TD = exchange.sum()
        self.settle()
        return y_TD, job.chosen._replace(wired=exchange.wired)

    def work(self, chosen: Chosen) -> LayerWork:
        """What a layer read in the coordinator's RAM, and what went over the wire both ways."""
        wired, number = chosen.wired, self.number[chosen.layer]
        assert isinstance(wired, Wired), "a layer that no host was asked about"
        size = wired.own * self.shelf.files.layouts[number].bytes
        read = {CPU_DRAM: {EXPERTS: size}, NET: {EXPERTS: wired.rows, ROUTING: wired.besides}}
        pairs = {CPU_DRAM: wired.own_pairs, NET: chosen.ids_TK.numel() - wired.own_pairs}
        return LayerWork(layer=chosen.layer, tokens=len(chosen.ids_TK), bytes=read, pairs=pairs, hosts=wired.hosts)

    def close(self) -> None:
        """Ends connections and threads; hosts wait for the next coordinator then."""
        self.settle()
        self.parts.gathering.close()
        self.members.close()
        self.worker.shutdown()
        self.shelf.close()
