"""Opens a model's layers on several hosts: waits for them, deals layers out, and sees them loaded."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from ....errors import DeviceError, OptionError
from ....kernels import Ops
from ....kernels.residual.streams import opened
from ....loaders.spec import CompressedSpec, ModelSpec, MoeSpec
from ....loaders.weights.checkpoint import Checkpoint, Progress
from ....loaders.weights.model_weights import Held, ModelWeights, allocate
from ...config import EngineConfig
from ...experts.backend import CpuExperts
from ...generation.schedule.state_slots import StateSlots
from ...ledger.timers import Timers
from ...memory import kv_budget
from ...memory.memory_plan import MemoryPlan
from ...model.decoder import Decoder
from ...model.inputs import DeviceInputs
from ...model.kv_cache import KVCache, pages_for
from ...model.segment import Room, part_of, row_width, runs, sizes
from ...placement.tier_memory import of_free
from ...units import GB
from ..joining import door, rate
from ..joining.gathering import Candidate
from ..messages.rows import F32, WIRES
from ..messages.terms import Terms
from ..sharing import Node
from .dealing import deal
from .held import HeldLayers
from .holders import Holders, Layers
from .net_layers import NetLayers, Ready, named

SLACK = 1 << 16  # bytes of a pass for copies of states and pieces of sequences
log = logging.getLogger("headrace")


class OnLayers:
    """Gathers the hosts that a config asks for, and tells each its layers. joining: as of
    `Gathering.first`. Raises OptionError, DeviceError, MemoryNeeded before weights are loaded."""

    def __init__(
        self,
        config: EngineConfig,
        checkpoint: Checkpoint,
        ops: Ops,
        plan: MemoryPlan,
        joining: Progress | None = None,
    ) -> None:
        self.config, self.checkpoint, self.ops, self.plan = config, checkpoint, ops, plan
        spec = checkpoint.spec
        _check(spec)
        format, budget = kv_budget.kv_format(config, spec, checkpoint.formats), plan.kv_budget
        slots = StateSlots.count(config.max_sequences)
        room = Room(budget.pages, format, slots, budget.windows, budget.max_context)
        each = sizes(spec, allocate(spec, checkpoint.formats, "meta"), room)
        self.layers = Layers(runs(spec), each, room, budget.work_bytes)
        terms = Terms.of(config, ops, self._limit(), checkpoint.formats.used)
        self.gathering = door.opened(config, terms, checkpoint)
        try:
            self._gather(joining)
        except BaseException:
            self.gathering.close()
            raise

    def _limit(self) -> int:
        """The most bytes of a pass on the wire."""
        config, room = self.config, self.layers.room
        tokens, sequences = max(config.prefill_chunk, config.max_sequences), config.max_sequences
        kinds = 1 + len(room.windows)
        numbers = (2 + kinds) * tokens + sequences * (pages_for(room.context) * kinds + 15)
        return 4 * numbers + tokens * F32.row(row_width(self.checkpoint.spec)) + SLACK

    def _gather(self, joining: Progress | None) -> None:
        count, shown = self.config.hosts or 1, self.gathering.meeting.shown
        log.warning("waiting for %d hosts: headrace host MODEL --join %s", count, shown)
        self.candidates = self.gathering.first(count, self.config.host_wait, joining)
        is_even = self.config.placement is not None and self.config.asked_placement.kind == "hosts"
        rates = [1.0 if is_even else one.rate for one in self.candidates]
        work = self.layers.work
        self.free = [self.plan.room, *(max(0, int(of_free(one.free)) - work) for one in self.candidates)]
        names = ["the coordinator", *(one.name for one in self.candidates)]
        weights = [0.0 if is_even else rate.measure(), *rates]
        nodes = [Node(*one) for one in zip(names, self.free, weights, strict=True)]
        self.home = deal(self.layers.units, self.layers.sizes, nodes)
        for number, candidate in enumerate(self.candidates, 1):
            self._give(candidate, number)

    def _give(self, candidate: Candidate, number: int) -> None:
        try:
            self.gathering.give(candidate, self.layers.share(self.home[number]))
        except OSError as error:
            raise DeviceError(f"host {candidate.name} left before the start ({error}): start it again") from error

    @property
    def held(self) -> Held:
        """What the coordinator loads: its layers, and all that stands outside of layers."""
        return Held(*(self.home[0][0] if self.home[0] else (0, 0)), outside=True)

    def decided(self) -> MemoryPlan:
        """The plan with the layers that the coordinator keeps."""
        (tier, memory), own = next(iter(self.plan.memory.items())), self.layers.bytes(self.home[0])
        needed = {**memory.needed, "layers and their cache": own} if own else memory.needed
        return replace(self.plan, memory={tier: replace(memory, needed=needed)})

    def decoder(self, weights: ModelWeights, inputs: DeviceInputs, timers: Timers) -> Decoder:
        """The decoder, when every host has loaded its layers. Raises DeviceError for one that has not."""
        own = HeldLayers(self.checkpoint, self.ops, self.layers.room, self.plan.room)
        for run in self.home[0]:
            own.put(run, weights)
        with ThreadPoolExecutor(len(self.candidates)) as waiting:
            links = list(waiting.map(lambda one: self.gathering.loaded(one, "layers"), self.candidates))
        holders = Holders(self.layers, self.home, links, self.free)
        self.gathering.open_places(holders.place, holders.gave_up)
        for link, layers in zip(links, self.home[1:], strict=True):
            said = ", ".join(map(named, layers)) or "none"
            ram = link.figures.ram_bytes_s / GB  # that layers are dealt by
            log.warning("host %s: layers %s, RAM read at %.1f GB/s, %s", link.name, said, ram, link.figures)
        parts = Ready(holders, self.gathering, own, WIRES[self.config.wire], self.config.host_timeout)
        beyond = NetLayers(parts, timers)
        if not self.config.no_measure:
            self._measure(beyond, weights)
        spec = part_of(self.checkpoint.spec, 0, 0)
        outside, cache = replace(weights, layers=(), tables={}), NoLayers(spec, self.layers.room, beyond)
        experts, context = CpuExperts([], self.ops), self.layers.room.context
        return Decoder(spec, outside, self.ops, experts, cache, context, inputs, beyond=beyond)

    def _measure(self, beyond: NetLayers, weights: ModelWeights) -> None:
        """What predictions need, and how many parts a pass has best. Raises DeviceError."""
        spec = self.checkpoint.spec

        def rows(tokens: int) -> Tensor:
            x_TD = self.ops.embed(weights.embed, torch.randint(spec.vocab, (tokens,)), spec.embedding_scale)
            return x_TD if spec.streams is None else opened(x_TD, spec.streams.count)[:, : row_width(spec)].contiguous()

        try:
            beyond.measure(self.config.prefill_chunk, self.config.max_sequences, rows)
        except DeviceError as error:
            beyond.close()
            raise DeviceError(f"{error}: start it again") from error


def _check(spec: ModelSpec) -> None:
    """Raises OptionError for layers that a host cannot have: they go by tokens, or keep what it has no room for."""
    layers = spec.layers
    if any(layer.grams is not None for layer in layers):
        raise OptionError("tables of runs of tokens stay on the coordinator: leave out --split-by layers")
    if any(isinstance(layer.ffn, MoeSpec) and layer.ffn.by_token for layer in layers):
        raise OptionError("tables that choose experts by token stay on the coordinator: leave out --split-by layers")
    if any(isinstance(layer.mixer, CompressedSpec) for layer in layers):
        raise OptionError("compressed entries stay on the coordinator: leave out --split-by layers")


class NoLayers(KVCache):
    """The cache of a decoder whose layers are elsewhere: what is asked of all layers is asked of those."""

    def __init__(self, spec: ModelSpec, room: Room, beyond: NetLayers) -> None:
        super().__init__(spec, room.pages, room.format, torch.device("cpu"), room.slots, room.windows)
        self.beyond = beyond

    def copy_state(self, slot: int, to: int) -> None:
        """In every layer, wherever it is."""
        self.beyond.copy_state(slot, to)
