"""Opens a model's experts on several hosts: waits for them, deals experts out, and sees them loaded."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from ...errors import DeviceError
from ...kernels import Ops
from ...loaders.weights.by_expert.stored import StoredExperts
from ...loaders.weights.checkpoint import Checkpoint, Progress
from ..bandwidth_model.network import wire_sizes
from ..config import EngineConfig
from ..experts.disk.files import ExpertFiles
from ..ledger.timers import Timers
from ..memory.memory_plan import MemoryPlan
from ..placement.placement import Tier
from ..placement.placement_file import IN_VRAM
from .dealing.dealt import Dealer, share
from .joining import door, layer_costs
from .joining.gathering import Candidate
from .members import Members
from .messages.rows import WIRES
from .messages.terms import Terms
from .net_experts import NetExperts, Ready
from .shelf import Shelf
from .vram.beside_gpu import Beside, NetBesideGpu

log = logging.getLogger("headrace")


class OnHosts:
    """Gathers the hosts that a config asks for, and tells each its share. joining: as of
    `Gathering.first`. Raises OptionError, DeviceError, MemoryNeeded before weights are loaded."""

    def __init__(
        self,
        config: EngineConfig,
        checkpoint: Checkpoint,
        stored: StoredExperts,
        ops: Ops,
        plan: MemoryPlan,
        joining: Progress | None = None,
    ) -> None:
        self.config, self.ops, self.plan = config, ops, plan
        self.counts, self.tokens = [len(row) for row in plan.placement.experts], config.prefill_chunk
        self.wire = WIRES[config.wire]
        self.files = ExpertFiles(stored, ops)
        tokens = max(config.prefill_chunk, config.max_sequences)
        limit = sum(wire_sizes.request(tokens, tokens * stored.top_k, checkpoint.spec.hidden, "f32", True))
        formats = (form.name for layout in stored.layouts for form in layout.formats)
        terms = Terms.of(config, ops, limit, formats)
        self.gathering = door.opened(config, terms, checkpoint)
        self.candidates: list[Candidate] = []
        try:
            self._gather(config, checkpoint, stored, joining)
        except BaseException:
            self.gathering.close()
            for one in self.candidates:  # they wait for a share that will not come
                one.sock.close()
            raise

    def _gather(
        self, config: EngineConfig, checkpoint: Checkpoint, stored: StoredExperts, joining: Progress | None
    ) -> None:
        count, shown = config.hosts or 1, self.gathering.meeting.shown
        log.warning("waiting for %d hosts: headrace host MODEL --join %s", count, shown)
        self.candidates = self.gathering.first(count, config.host_wait, joining)
        dealer = Dealer(config, checkpoint.spec, stored, self.plan, self.candidates)
        self.dealt = dealer.dealt(self.counts, self.ops)
        sizes = [layout.bytes for layout in stored.layouts]
        own = sum(len(row) * one for row, one in zip(share(self.dealt, 0), sizes, strict=True))
        self.room = max(0, self.plan.room - own)
        for number, candidate in enumerate(self.candidates, 1):
            self._give(candidate, share(self.dealt, number))

    def _give(self, candidate: Candidate, share: list[list[int]]) -> None:
        try:
            self.gathering.give(candidate, {"experts": share})
        except OSError as error:
            raise DeviceError(f"host {candidate.name} left before the start ({error}): start it again") from error

    def decided(self) -> MemoryPlan:
        """The plan with the experts that the coordinator keeps."""
        rows, here = iter(self.dealt.home), {0: Tier.CPU, IN_VRAM: Tier.GPU0}
        tiers = [tuple(here.get(owner, Tier.NET) for owner in next(rows)) if count else () for count in self.counts]
        return replace(self.plan, placement=replace(self.plan.placement, experts=tuple(tiers)))

    def make(self, plan: MemoryPlan, timers: Timers, beside: Beside | None = None) -> NetExperts | NetBesideGpu:
        """The experts, when every host has loaded its own; beside a GPU, if there is one. Raises DeviceError for a host
        that has not."""
        net = self._on_machines(timers)
        return net if beside is None else NetBesideGpu(net, beside, plan.placement, timers)

    def _on_machines(self, timers: Timers) -> NetExperts:
        self.files.check_names()
        shelf = Shelf(self.files, self.ops, self.room)
        own = [(layer, expert) for layer, experts in enumerate(share(self.dealt, 0)) for expert in experts]
        shelf.take(own)
        with ThreadPoolExecutor(len(self.candidates)) as waiting:
            links = list(waiting.map(lambda one: self.gathering.loaded(one, "experts"), self.candidates))
        rates = [max(1.0, one.figures.expert_bytes_s) for one in self.candidates]
        largest = max(layout.bytes for layout in self.files.layouts) * self.files.stored.top_k
        weights = [sum(rates) / len(rates), *rates]  # the coordinator's own was not measured
        members = Members(self.dealt, links, weights, fallback=self.room >= largest)
        self.gathering.open_places(members.place, members.gave_up)
        for number, link in enumerate(links, 1):
            count = sum(map(len, share(self.dealt, number)))
            log.warning("host %s: %d experts, %s", link.name, count, link.figures)
        parts = Ready(members, self.gathering, shelf, self.wire, self.config.host_timeout)
        experts = NetExperts(parts, self.ops, timers)
        if not self.config.no_measure:
            self._measure(experts)
        return experts

    def _measure(self, experts: NetExperts) -> None:
        """What a layer costs besides, which predictions need."""
        try:
            experts.network.costs = layer_costs.measure(experts, self.tokens)
        except DeviceError:
            experts.close()
            raise
