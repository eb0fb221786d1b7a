"""Deals a model's experts out as a config asks: by a file, by bandwidth and link, or evenly; and copies of some."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from ....kernels import Ops
from ....loaders.quants.by_format import ByFormat
from ....loaders.spec import ModelSpec
from ....loaders.weights.by_expert.stored import StoredExperts
from ...bandwidth_model.network import balance
from ...bandwidth_model.network.balance import Taker
from ...config import EngineConfig
from ...memory.memory_plan import MemoryPlan
from ...placement import hosts_asked, placement_file
from ...placement.placement import Tier
from ...placement.placement_file import IN_VRAM
from ...placement.tier_memory import of_free
from ..joining import rate
from ..joining.gathering import Candidate
from ..sharing import Node, Owners, deal
from . import replicas
from .replicas import Copies

log = logging.getLogger("headrace")


class Dealt(NamedTuple):
    """home: whose each expert is; copies: who else has it."""

    home: Owners
    copies: Copies


class Dealer:
    """stored: the model's experts; plan: which of them lie in VRAM, and bytes that the coordinator has in RAM for some;
    hosts: in the order of their numbers."""

    def __init__(
        self, config: EngineConfig, spec: ModelSpec, stored: StoredExperts, plan: MemoryPlan, hosts: Sequence[Candidate]
    ) -> None:
        self.config, self.spec, self.stored, self.hosts = config, spec, stored, hosts
        self.room, self.rows = plan.room, [row for row in plan.placement.experts if row]
        self.has_gpu = plan.placement.main is Tier.GPU0
        self.sizes = [layout.bytes for layout in stored.layouts]

    def dealt(self, counts: Sequence[int], ops: Ops) -> Dealt:
        """counts: experts of every layer of the model. Raises OptionError, MemoryNeeded."""
        asked = self.config.asked_placement
        if asked.file is not None:
            rows = placement_file.read_hosts(asked.file, counts, [one.name for one in self.hosts], self.has_gpu)
            return of_lists([row for row in rows if row])
        by_rate = self.config.placement is not None and asked.kind == "auto"
        weights = self._weights(ops) if by_rate else [0.0, *(1.0 for _ in self.hosts)]
        own = Node("the coordinator", self.room, weights[0])
        rooms = [int(of_free(one.free)) for one in self.hosts]
        nodes = [Node(one.name, room, w) for one, room, w in zip(self.hosts, rooms, weights[1:], strict=True)]
        home = self._beside_vram(deal([row.count(Tier.NET) for row in self.rows], self.sizes, [own, *nodes]))
        return Dealt(home, self._copies(home, [0, *rooms]))

    def _beside_vram(self, owners: Owners) -> Owners:
        """Of all experts, those in VRAM among them. owners: of the others."""
        found = []
        for row, others in zip(self.rows, owners, strict=True):
            turns = iter(others)
            found.append([next(turns) if tier is Tier.NET else IN_VRAM for tier in row])
        return found

    def _weights(self, ops: Ops) -> list[float]:
        """By machine the share of a layer with which all are done at once, by bandwidth and link."""
        layout = self.stored.layouts[0]
        read, top_k = ByFormat.of(layout.bytes_by_format), self.stored.top_k
        own = Taker(0.0, top_k * read.total / rate.experts(ops, layout, sum(self.stored.experts))[1])
        wire, hidden = self.config.wire, layout.hidden
        found = balance.shares([own, *(one.figures.taker(read, top_k, hidden, wire) for one in self.hosts)])
        for one, share in zip(self.hosts, found[1:], strict=True):
            if share <= balance.LEAST:
                log.warning(
                    "host %s gets what has no room elsewhere: its round trip takes longer than it saves (%s)",
                    one.name, one.figures,
                )  # fmt: skip
        return found

    def _copies(self, home: Owners, rooms: Sequence[int]) -> Copies:
        """Those of --replicate, in the room that is left on hosts."""
        asked = hosts_asked.replication(self.config.replicate)
        if asked is None:
            return [{} for _ in home]
        hot = replicas.hottest(asked.trace, self.spec, [len(row) for row in home], asked.share)
        hot = [one for one in hot if home[one.layer][one.expert] != IN_VRAM]
        taken = [_bytes(home, number, self.sizes) for number in range(len(rooms))]
        left = [room - used for room, used in zip(rooms, taken, strict=True)]
        copies, without = replicas.place(hot, home, self.sizes, left)
        short = f"; {without} more found no room" if without else ""
        log.warning("%d experts have a copy on a second host%s", sum(map(len, copies)), short)
        return copies


def of_lists(rows: Sequence[Sequence[Sequence[int]]]) -> Dealt:
    """Of the machines that each expert was said to be on, its own first."""
    home = [[nodes[0] for nodes in row] for row in rows]
    return Dealt(home, [{e: tuple(nodes[1:]) for e, nodes in enumerate(row) if len(nodes) > 1} for row in rows])


def share(dealt: Dealt, number: int) -> list[list[int]]:
    """The experts of a node by layer, with those that it has a copy of."""
    return [
        [expert for expert, owner in enumerate(row) if owner == number or number in more.get(expert, ())]
        for row, more in zip(dealt.home, dealt.copies, strict=True)
    ]


def _bytes(home: Owners, number: int, sizes: Sequence[int]) -> int:
    """Of a node's own experts."""
    return sum(row.count(number) * one for row, one in zip(home, sizes, strict=True))
