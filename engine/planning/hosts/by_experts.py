"""A plan of experts on hosts: everything else at the coordinator, which has some experts too where it has room.

    layer        = common + max(own experts + shared expert, exchange) + cost of a hop
    with a GPU   = common + down + max(own experts in RAM, shared expert, exchange) + up + hand-off + cost of a hop

Shares are those with which all machines are done at once, by bandwidth and link, within RAM. Of what a layer's tokens
choose, each machine is counted with what the busiest has to expect: the slowest one is waited for. A GPU at the
coordinator has all but these experts, and those of whole layers, from the last one down, as a run places them: they
cross no link and no wire (`vram.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from ....loaders.architecture.architecture import Layer
from ...bandwidth_model.hardware import Hardware
from ...bandwidth_model.network import balance, wire_sizes
from ...bandwidth_model.network.balance import Taker
from ...bandwidth_model.network.busiest import most
from ...bandwidth_model.network.hops import Asked, Cost, Costs, Exchange, Hop
from ...bandwidth_model.roofline import Handoff, Step, Weights, in_turn, side_by_side
from ...placement.placement import channel
from ...placement.tier_memory import TierMemory, of_installed, of_needs
from .. import layouts as placing
from ..layouts import CPU, Demand, Placement
from ..speed import CHUNK, Model, Workload, cache_of
from . import vram
from .machines import HOP
from .vram import GPU

NAME = "experts on hosts"
COSTS = Costs(((1.0, HOP),))


@dataclass(frozen=True)
class ByExperts:
    """engine: of the model on the coordinator, which has a CPU, and a GPU or none. fills_vram: a GPU has experts of as
    many layers as fit; else of none."""

    engine: Model
    hops: tuple[Hop, ...]
    wire: str
    demand: Demand
    work: Workload
    fills_vram: bool = True

    @cached_property
    def placement(self) -> Placement:
        """Where everything else lies, and the experts of whole layers in VRAM."""
        storage, gpus = self.engine.storage, self.engine.hardware.gpus
        if not gpus:
            return placing.in_ram(NAME, len(storage.layers))
        return vram.placement(NAME, storage, gpus[0], self.demand, fills=self.fills_vram)

    @property
    def main(self) -> str:
        """Where everything but experts is."""
        return self.placement.outside

    @property
    def layers_in_vram(self) -> int | None:
        """Whose experts the GPU has; None: there is none."""
        if self.main == CPU:
            return None
        layers = zip(self.engine.storage.layers, self.placement.experts, strict=True)
        return sum(1 for layer, tier in layers if layer.experts and tier == GPU)

    @cached_property
    def outside_vram(self) -> int:
        """Bytes of the experts that machines share."""
        layers = zip(self.engine.storage.layers, self.placement.experts, strict=True)
        return sum(layer.routed for layer, tier in layers if tier == CPU)

    @cached_property
    def _rooms(self) -> list[float]:
        """By machine the share of the experts outside of VRAM that it has room for, the coordinator's first."""
        cpu = self.engine.hardware.cpu
        assert cpu is not None
        room, besides = placing.usable(cpu), sum(self._needs(CPU).values())
        rooms = [None if room is None else max(0, room - besides)]
        rooms += [None if one.device.memory is None else of_installed(one.device.memory) for one in self.hops]
        return [1.0 if one is None else one / max(1, self.outside_vram) for one in rooms]

    @cached_property
    def shares(self) -> list[float]:
        """By machine its part of the experts of each layer, the coordinator's first; in sum 1, also where there is too
        little room."""
        found = balance.with_rooms(self._takers(), self._rooms)
        left = 1 - sum(found)
        return [share + left / len(found) for share in found] if left > 1e-9 else found

    def _takers(self) -> list[Taker]:
        """Of all layers of a decode step, at the middle of all ranges."""
        tokens, hidden = self.work.batch, self.engine.model.hidden
        own, trips, wires = 0.0, 0, 0.0
        reads = [0.0] * len(self.hops)
        for i, layer in self._routed():
            if self.placement.experts[i] != CPU:
                continue
            load = self.engine.experts(i, CPU, tokens)
            own += load.seconds(self.engine.hardware)
            trips += 1
            there, back, _ = wire_sizes.expected(tokens, tokens * _top_k(layer), hidden, self.wire)
            wires += there + back
            for number, hop in enumerate(self.hops):
                reads[number] += load.seconds(hop.machine)
        takers = [
            Taker(trips * hop.round_trip.mid, read + wires / hop.rate.mid)
            for hop, read in zip(self.hops, reads, strict=True)
        ]
        return [Taker(0.0, max(own, 1e-12)), *(one._replace(whole=max(one.whole, 1e-12)) for one in takers)]

    def _routed(self) -> Iterator[tuple[int, Layer]]:
        return ((i, layer) for i, layer in enumerate(self.engine.model.layers) if layer.experts is not None)

    def memory(self) -> dict[str, TierMemory]:
        """What each machine's RAM holds, and the coordinator's VRAM."""
        hardware, shares = self.engine.hardware, self.shares
        assert hardware.cpu is not None
        found = {} if self.main == CPU else {"vram": of_needs(self._needs(GPU), placing.usable(hardware.gpus[0]))}
        own = {**self._needs(CPU), "experts": round(shares[0] * self.outside_vram)}
        found["ram"] = of_needs(own, placing.usable(hardware.cpu))
        for hop, share in zip(self.hops, shares[1:], strict=True):
            room = None if hop.device.memory is None else of_installed(hop.device.memory)
            found[hop.name] = of_needs({"experts": round(share * self.outside_vram)}, room)
        return found

    def _needs(self, tier: str) -> dict[str, int]:
        """Bytes that a memory of the coordinator's holds, without experts that machines share."""
        storage, is_main = self.engine.storage, tier == self.main
        return {
            "common weights": storage.common if is_main else 0,
            "experts": 0 if tier == CPU else storage.routed - self.outside_vram,
            "cache": sum(self.demand.cache) if is_main else 0,
            "embedding": storage.held if tier == CPU else 0,
            "activations": self.demand.activations if is_main else 0,
        }

    def decode(self) -> list[Step]:
        """One step: a token for every sequence of the batch."""
        engine, work = self.engine, self.work
        tokens = work.batch
        steps = [in_turn(engine.overhead(tokens, tokens))]
        for i, layer in enumerate(engine.model.layers):
            cache = cache_of(layer, channel(self.main), work.context, 1, work.kv)
            each = replace(cache, read=tokens * cache.read, written=tokens * cache.written, flops=tokens * cache.flops)
            steps.append(in_turn(engine.common(i, self.main, tokens), each))
            steps += self._layer(i, layer, tokens)
        return [*steps, engine.outside(self.placement, tokens, tokens)]

    def prefill(self) -> list[Step] | None:
        """A prompt from nothing; None where the compute of a machine is not known."""
        engine, work = self.engine, self.work
        devices = [engine.hardware.cpu, *engine.hardware.gpus, *(hop.device for hop in self.hops)]
        if any(device is None or (device.flops is None and device.slowdown is None) for device in devices):
            return None
        steps: list[Step] = []
        chunk = CHUNK["cpu" if self.main == CPU else "gpu"]
        for done in range(0, work.prompt, chunk):
            tokens = min(chunk, work.prompt - done)
            steps.append(in_turn(engine.overhead(tokens, 0)))
            for i, layer in enumerate(engine.model.layers):
                cache = cache_of(layer, channel(self.main), done + tokens, tokens, work.kv)
                steps.append(in_turn(engine.common(i, self.main, tokens), cache))
                is_last = i == len(engine.model.layers) - 1
                steps += self._layer(i, layer, tokens if not is_last else int(done + tokens == work.prompt))
        return [*steps, engine.outside(self.placement, 0, 1)]

    def _layer(self, i: int, layer: Layer, tokens: int) -> list[Step]:
        """The experts of a layer that so many tokens choose."""
        if layer.experts is None or not tokens:
            return []
        engine, shares = self.engine, self.shares
        if self.placement.experts[i] != CPU:
            return [in_turn(engine.experts(i, GPU, tokens))]
        # The shared expert, which is part of the common weights, runs while others are computed elsewhere.
        common = engine.common(i, self.main, tokens)
        shared = replace(common, read=engine.storage.layers[i].shared_in, flops=0)
        machines = sum(1 for share in shares if share)
        touched, count = engine.touched(i, tokens), layer.experts.count
        parts = [most(touched, share, count, machines) / touched if touched else 0.0 for share in shares]
        whole = engine.experts(i, CPU, tokens)
        own = replace(whole, read=whole.read.times(parts[0]), flops=whole.flops * parts[0])
        asked = tuple(
            self._asked(hop, whole, part, tokens, layer.experts.top_k)
            for hop, part in zip(self.hops, parts[1:], strict=True)
            if part
        )
        hop = [in_turn(Cost(COSTS, tokens))] if asked else []
        if self.main == CPU:
            return [in_turn(replace(shared, times=-1)), side_by_side((Exchange(asked),), (own, shared)), *hop]
        down, up = vram.crossing(engine, layer, tokens)
        together = side_by_side((Exchange(asked),), (own,), (shared,))
        return [in_turn(replace(shared, times=-1)), in_turn(*down), together, in_turn(*up, Handoff("sync")), *hop]

    def _asked(self, hop: Hop, whole: Weights, part: float, tokens: int, top_k: int) -> Asked:
        """What a host has to do that gets this part of a layer's choices."""
        sent = tokens * (1 - (1 - part) ** top_k)
        choices, hidden = tokens * top_k * part, self.engine.model.hidden
        there, back, pieces = wire_sizes.expected(sent, choices, hidden, self.wire)
        return Asked(
            hop=hop, read=whole.read.times(part), flops=whole.flops * part, each=whole.tokens, there=there, back=back,
            pieces=pieces,
        )  # fmt: skip

    def crossing_bytes(self) -> dict[str, dict[str, int]]:
        """Between the coordinator's RAM and its GPU, of a decode step's layers, by link and group."""
        return {} if self.main == CPU else vram.layers_bytes(self.engine.model, self.placement, self.work.batch)

    def net_bytes(self) -> int:
        """On the wire, of a decode step, both ways."""
        hidden, total, tokens = self.engine.model.hidden, 0.0, self.work.batch
        for i, layer in self._routed():
            for share in self.shares[1:] if self.placement.experts[i] == CPU else ():
                top_k = _top_k(layer)
                sent, choices = tokens * (1 - (1 - share) ** top_k), tokens * top_k * share
                if share:
                    there, back, _ = wire_sizes.expected(sent, choices, hidden, self.wire)
                    total += there + back
        return round(total)

    @property
    def machine(self) -> Hardware:
        """That the steps are for."""
        return self.engine.hardware


def _top_k(layer: Layer) -> int:
    return 0 if layer.experts is None else layer.experts.top_k
