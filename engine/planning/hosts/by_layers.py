"""A plan of whole layers on hosts, each with its part of the cache: a pass goes from the coordinator to a host and
back, and on to the next.

    pass = sum over machines of their layers + sum over hosts of (round trip + hidden states + cost of a hop)
           + (parts - 1) * the machine that takes longest

A pass of many tokens goes in as many parts as take least time, so that machines compute side by side; each part reads
the weights of a layer anew. Machines get layers in the proportion of their
bandwidth, within RAM, in runs of neighbouring ones, the coordinator's first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from ...bandwidth_model.hardware import ENDS, End, Hardware
from ...bandwidth_model.network import balance
from ...bandwidth_model.network.balance import Taker
from ...bandwidth_model.network.hops import Hop
from ...bandwidth_model.network.wire_sizes import HEADER, ROW
from ...bandwidth_model.roofline import Cache, Step, in_turn, predict
from ...ledger.passes import CPU_DRAM, NET, Prediction, add_up
from ...placement.tier_memory import TierMemory, of_installed, of_needs
from .. import layouts as placing
from ..layouts import CPU, Demand, Placement
from ..speed import CHUNK, Model, Workload, cache_of
from .machines import HOP

NAME = "layers on hosts"
PARTS = (1, 2, 3, 4, 6, 8)
Layer = Callable[[int, int], list[Step]]  # of a layer's number and the tokens of a part


@dataclass(frozen=True)
class ByLayers:
    """engine: of the model on the coordinator, which has a CPU and no GPU."""

    engine: Model
    hops: tuple[Hop, ...]
    demand: Demand
    work: Workload
    wire: str

    @cached_property
    def placement(self) -> Placement:
        """As of one machine; `runs` says which."""
        return placing.in_ram(NAME, len(self.engine.storage.layers))

    @cached_property
    def _sizes(self) -> list[int]:
        """Bytes of each layer with its cache."""
        pairs = zip(self.engine.storage.layers, self.demand.cache, strict=True)
        return [layer.common + layer.routed + cache for layer, cache in pairs]

    @cached_property
    def runs(self) -> list[range]:
        """By machine its layers, the coordinator's first."""
        storage, cpu = self.engine.storage, self.engine.hardware.cpu
        assert cpu is not None
        total, activations = sum(self._sizes), self.demand.activations
        room = placing.usable(cpu)
        outside = storage.outside + storage.held + activations
        rooms = [None if room is None else room - outside]
        rooms += [None if h.device.memory is None else of_installed(h.device.memory) - activations for h in self.hops]
        takers = [Taker(0.0, 1 / device.bandwidth.mid) for device in (cpu, *(hop.device for hop in self.hops))]
        largest = max(self._sizes)  # what a cut between layers may put too much on one
        parts = [1.0 if one is None else max(0, one - largest // 2) / total for one in rooms]
        shares = balance.with_rooms(takers, parts)
        left = 1 - sum(shares)
        return self._cut([share + max(0.0, left) / len(shares) for share in shares])

    def _cut(self, shares: list[float]) -> list[range]:
        """Runs whose ends are the nearest to where the shares end."""
        total, ends, found = sum(self._sizes), [0], []
        for one in self._sizes:
            ends.append(ends[-1] + one)
        first, wanted = 0, 0.0
        for number, share in enumerate(shares):
            wanted += share * total
            is_last = number == len(shares) - 1
            last = len(ends) - 1 if is_last else min(range(len(ends)), key=lambda n: abs(ends[n] - wanted))
            last = max(first, last)
            found.append(range(first, last))
            first = last
        return found

    def memory(self) -> dict[str, TierMemory]:
        """What each machine's RAM holds."""
        storage, hardware, demand = self.engine.storage, self.engine.hardware, self.demand
        assert hardware.cpu is not None
        found = {}
        devices = [("ram", hardware.cpu), *((hop.name, hop.device) for hop in self.hops)]
        for (name, device), run in zip(devices, self.runs, strict=True):
            is_here = name == "ram"
            needs = {
                "common weights": sum(storage.layers[i].common for i in run) + (storage.outside if is_here else 0),
                "experts": sum(storage.layers[i].routed for i in run),
                "cache": sum(demand.cache[i] for i in run),
                "embedding": storage.held if is_here else 0,
                "activations": demand.activations if run or is_here else 0,
            }
            found[name] = of_needs(needs, placing.usable(device))
        return found

    def decode(self, end: End) -> Prediction:
        """One step: a token for every sequence of the batch."""
        engine, work = self.engine, self.work
        tokens = work.batch

        def layer(i: int, part: int) -> list[Step]:
            cache = cache_of(engine.model.layers[i], CPU_DRAM, work.context, 1, work.kv)
            return self._layer(i, part, part, cache, part)

        ends = [in_turn(engine.overhead(tokens, tokens)), engine.outside(self.placement, tokens, tokens)]
        return self._through(tokens, layer, ends, end)

    def prefill(self) -> dict[End, Prediction] | None:
        """A prompt from nothing, at all ends; None where the compute of a machine with layers is not known."""
        devices = [self.engine.hardware.cpu, *(hop.device for hop in self.hops)]
        with_layers = [device for device, run in zip(devices, self.runs, strict=True) if run]
        if any(device is None or (device.flops is None and device.slowdown is None) for device in with_layers):
            return None
        return {end: self._prefill(end) for end in ENDS}

    def _prefill(self, end: End) -> Prediction:
        engine, work, found = self.engine, self.work, []
        for done in range(0, work.prompt, CHUNK["cpu"]):
            tokens = min(CHUNK["cpu"], work.prompt - done)

            def layer(i: int, part: int, done: int = done, tokens: int = tokens) -> list[Step]:
                is_last = i == len(engine.model.layers) - 1
                cache = cache_of(engine.model.layers[i], CPU_DRAM, done + tokens, part, work.kv)
                return self._layer(i, part, part if not is_last else int(done + tokens == work.prompt), cache, 1)

            ends = [in_turn(engine.overhead(tokens, 0))]
            if done + tokens == work.prompt:
                ends.append(engine.outside(self.placement, 0, 1))
            found.append(self._through(tokens, layer, ends, end))
        return _sum(found)

    def _layer(self, i: int, tokens: int, routed: int, cache: Cache, sequences: int) -> list[Step]:
        """A layer on whatever machine has it; routed: tokens that need its experts."""
        engine = self.engine
        every = replace(
            cache, read=sequences * cache.read, written=sequences * cache.written, flops=sequences * cache.flops
        )
        steps = [in_turn(engine.common(i, CPU, tokens), every)]
        if engine.model.layers[i].experts is not None and routed:
            steps.append(in_turn(engine.experts(i, CPU, routed)))
        return steps

    def _through(self, tokens: int, layer: Layer, ends: list[Step], end: End) -> Prediction:
        """A pass through all machines, in as many parts as take least time. ends: what the coordinator does besides."""
        found = [self._in_parts(tokens, parts, layer, end) for parts in PARTS if parts <= tokens]
        return _sum([predict(ends, self.engine.hardware, end), min(found, key=lambda one: one.seconds)])

    def _in_parts(self, tokens: int, parts: int, layer: Layer, end: End) -> Prediction:
        """The layers of a pass in so many parts, of which each machine has one at a time."""
        hardware, part, found = self.engine.hardware, -(-tokens // parts), list[Prediction]()
        for number, run in enumerate(self.runs):
            steps = [step for i in run for step in layer(i, part)]
            if number == 0:
                found.append(predict(steps, hardware, end))
            elif run:
                hop = self.hops[number - 1]
                found.append(_named(predict(steps, _alike(hop, hardware), end), hop.name))
        hops = [self._hop_s(hop, part, end) for hop, run in zip(self.hops, self.runs[1:], strict=True) if run]
        through = sum(one.seconds for one in found) + sum(hops)
        terms = add_up([*(one.terms for one in found), {NET: sum(hops)}] * parts)
        return Prediction(terms=terms, seconds=through + (parts - 1) * max(one.seconds for one in found))

    def _hop_s(self, hop: Hop, tokens: int, end: End) -> float:
        """There and back."""
        sent = 2 * self._bytes(tokens)
        return hop.round_trip.at(end) + sent / hop.rate.at(end) + HOP.at(end)

    def _bytes(self, tokens: int) -> int:
        """Of the hidden states of so many tokens, in one direction."""
        return tokens * ROW[self.wire](self.engine.model.hidden) + HEADER

    @property
    def net_bytes(self) -> int:
        """On the wire, of a decode step, both ways."""
        hosts = sum(1 for run in self.runs[1:] if run)
        return 2 * hosts * self._bytes(self.work.batch)


def _alike(hop: Hop, hardware: Hardware) -> Hardware:
    """A host, with what layers cost the coordinator besides."""
    return replace(hop.machine, layer=hardware.layer, more_tokens=hardware.more_tokens, shared=hardware.shared)


def _named(found: Prediction, name: str) -> Prediction:
    """The same with its memory under a host's name."""
    return Prediction(terms={name: sum(found.terms.values())}, seconds=found.seconds)


def _sum(many: list[Prediction]) -> Prediction:
    """One after the other."""
    return Prediction(terms=add_up(one.terms for one in many), seconds=sum(one.seconds for one in many))
