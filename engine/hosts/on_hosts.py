"""Opens a model's experts on several hosts: waits for them, deals experts out, and sees them loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from ...errors import DeviceError, OptionError
from ...kernels import Ops
from ...loaders.weights.by_expert.stored import StoredExperts
from ...loaders.weights.checkpoint import Checkpoint
from ..config import EngineConfig
from ..experts.disk.files import ExpertFiles
from ..ledger.timers import Timers
from ..memory.memory_plan import MemoryPlan
from ..placement import placement_file
from ..placement.placement import Placement, Tier
from ..placement.tier_memory import of_free
from .joining import address as addresses
from .joining import fingerprint, meeting, rate
from .joining.gathering import Candidate, Gathering
from .link import Link
from .members import Members
from .messages import greeting
from .messages.rows import WIRES, work_bytes
from .messages.terms import Terms
from .net_experts import NetExperts, Ready
from .sharing import Node, Owners, deal
from .shelf import Shelf

log = logging.getLogger("headrace")


class OnHosts:
    """Gathers the hosts that a config asks for, and tells each its share. Raises OptionError, DeviceError,
    MemoryNeeded before weights are loaded."""

    def __init__(
        self, config: EngineConfig, checkpoint: Checkpoint, stored: StoredExperts, ops: Ops, plan: MemoryPlan
    ) -> None:
        self.config, self.ops, self.plan = config, ops, plan
        self.counts = [len(row) for row in plan.placement.experts]
        self.wire = WIRES[config.wire]
        door, secret = _door(config), greeting.token(config.host_token)
        if not secret and not addresses.is_loopback(door[0]):
            raise OptionError(
                f"hosts join {door[0]} with a token: put a secret text into a file, and name it with --host-token here "
                "and on the hosts"
            )
        self.files = ExpertFiles(stored, ops)
        tokens = max(config.prefill_chunk, config.max_sequences)
        limit = sum(work_bytes(tokens, tokens * stored.top_k, checkpoint.spec.hidden, WIRES["f32"], True))
        terms = Terms.of(config, ops, limit)
        self.gathering = Gathering(meeting.Meeting(*door), secret, terms, fingerprint.of(checkpoint))
        try:
            self._gather(config, stored)
        except BaseException:
            self.gathering.close()
            raise

    def _gather(self, config: EngineConfig, stored: StoredExperts) -> None:
        count, shown = config.hosts or 1, self.gathering.meeting.shown
        log.warning("waiting for %d hosts: headrace host MODEL --join %s", count, shown)
        self.candidates = self.gathering.first(count, config.host_wait)
        sizes = [layout.bytes for layout in stored.layouts]
        self.home = self._deal(stored.experts, sizes)
        self.room = max(0, self.plan.room - self._bytes(0, sizes))
        for number, candidate in enumerate(self.candidates, 1):
            self._give(candidate, _share(self.home, number))

    def _give(self, candidate: Candidate, share: list[list[int]]) -> None:
        try:
            self.gathering.give(candidate, share)
        except OSError as error:
            raise DeviceError(f"host {candidate.name} left before the start ({error}): start it again") from error

    def _bytes(self, node: int, sizes: Sequence[int]) -> int:
        return sum(row.count(node) * one for row, one in zip(self.home, sizes, strict=True))

    def _deal(self, counts: Sequence[int], sizes: Sequence[int]) -> Owners:
        """As asked: by a file, by what was measured, or evenly."""
        asked = self.config.asked_placement
        if asked.file is not None:
            rows = placement_file.read_hosts(asked.file, self.counts, [one.name for one in self.candidates])
            return [list(row) for row in rows if row]
        by_rate = self.config.placement is not None and asked.kind == "auto"
        own = Node("the coordinator", self.plan.room, rate.measure() if by_rate else 0.0)
        nodes = [Node(one.name, int(of_free(one.free)), one.rate if by_rate else 1.0) for one in self.candidates]
        return deal(counts, sizes, [own, *nodes])

    def decided(self) -> MemoryPlan:
        """The plan with the experts that the coordinator keeps."""
        rows = iter(self.home)
        tiers = [
            tuple(Tier.NET if owner else Tier.CPU for owner in next(rows)) if count else () for count in self.counts
        ]
        placement = Placement(name=self.plan.placement.name, main=Tier.CPU, experts=tuple(tiers))
        return replace(self.plan, placement=placement)

    def make(self, plan: MemoryPlan, timers: Timers) -> NetExperts:
        """The experts, when every host has loaded its own. Raises DeviceError for one that has not."""
        self.files.check_names()
        shelf = Shelf(self.files, self.ops, self.room)
        own = [(layer, expert) for layer, experts in enumerate(_share(self.home, 0)) for expert in experts]
        shelf.take(own)
        with ThreadPoolExecutor(len(self.candidates)) as waiting:
            links = list(waiting.map(self._ready, self.candidates))
        weights = [one.rate if one.rate > 0 else 1.0 for one in self.candidates]
        largest = max(layout.bytes for layout in self.files.layouts) * self.files.stored.top_k
        members = Members(self.home, links, weights, fallback=self.room >= largest)
        self.gathering.open_places(members.place, members.gave_up)
        for number, link in enumerate(links, 1):
            count = sum(row.count(number) for row in self.home)
            log.warning("host %s: %d experts, generation %d", link.name, count, link.generation)
        parts = Ready(members, self.gathering, shelf, self.wire, self.config.host_timeout)
        return NetExperts(parts, self.ops, timers)

    def _ready(self, candidate: Candidate) -> Link:
        try:
            return self.gathering.ready(candidate)
        except (OSError, DeviceError) as error:
            self.gathering.close()
            raise DeviceError(
                f"host {candidate.name} did not load its experts ({error}): see what it says, and start again"
            ) from error


def _door(config: EngineConfig) -> tuple[str, int]:
    """Where hosts join. Raises OptionError."""
    address, port = addresses.parse(config.listen, "--listen")
    addresses.check(address, "--listen", config.i_know)
    return address, port


def _share(home: Owners, number: int) -> list[list[int]]:
    return [[expert for expert, owner in enumerate(row) if owner == number] for row in home]
