"""Experts or layers on hosts: both as a plan has placements, and which is faster and why."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ....errors import OptionError
from ....loaders.architecture.architecture import Architecture
from ...bandwidth_model.hardware import ENDS, Hardware
from ...bandwidth_model.network.hops import Hop
from ...ledger.passes import CPU_DRAM, NET
from ...units import size
from ..layouts import Demand
from ..speed import Model, Rated, Workload
from .by_experts import ByExperts
from .by_layers import ByLayers

EXPERTS = "experts"


@dataclass(frozen=True, kw_only=True)
class Hosted:
    """A model on hosts: by experts and by layers, bytes of a token on the wire, and why the faster one is."""

    hops: tuple[Hop, ...]
    wire: str
    by_experts: Rated
    by_layers: Rated
    shares: tuple[float, ...]
    runs: tuple[range, ...]
    net_bytes: dict[str, int]
    why: tuple[str, ...]

    def bytes_per_token(self, rated: Rated, engine: Model, work: Workload) -> dict[str, dict[str, int]]:
        """By memory and group, of one of the two."""
        whole = engine.bytes_per_token(rated.placement, work)[CPU_DRAM]
        names, found = [CPU_DRAM, *(hop.name for hop in self.hops)], dict[str, dict[str, int]]()
        experts = whole.get(EXPERTS, 0)
        if rated is self.by_experts:
            others = {group: size for group, size in whole.items() if group != EXPERTS}
            found = {name: {EXPERTS: round(experts * s)} for name, s in zip(names, self.shares, strict=True) if s}
            found[CPU_DRAM] = {**others, **found.get(CPU_DRAM, {})}
        else:
            where = [name for name, run in zip(names, self.runs, strict=True) for _ in run]
            found = engine.bytes_by_place(where, work)
        return {**found, NET: {EXPERTS if rated is self.by_experts else "hidden": self.net_bytes[rated.placement.name]}}

    @property
    def rated(self) -> tuple[Rated, Rated]:
        return self.by_experts, self.by_layers


def check(hardware: Hardware, model: Architecture) -> None:
    """Raises OptionError for a coordinator, or a model, that cannot be."""
    if not any(layer.experts for layer in model.layers):
        raise OptionError("--hosts: this model has no routed experts to put there: leave it out")
    if hardware.gpus:
        raise OptionError(
            f"--hosts: {hardware.gpus[0].name} of --hardware is no CPU, and plans have none beside hosts yet, though "
            "runs do: name a CPU and RAM alone"
        )


def variants(hosted: Hosted) -> list[tuple[str, tuple[Hop, ...], str]]:
    """Hosts and wire with one thing changed: one more host, a faster link, fewer bytes."""
    last, count = hosted.hops[-1], len(hosted.hops)
    more = replace(last, name=f"host{count + 1}")
    faster = tuple(replace(one, rate=one.rate.times(4)) for one in hosted.hops)
    nearer = tuple(replace(one, round_trip=one.round_trip.times(0.5)) for one in hosted.hops)
    found = [
        ("one more host like the last", (*hosted.hops, more), hosted.wire),
        ("links 4 times as fast", faster, hosted.wire),
        ("half of the round trips", nearer, hosted.wire),
    ]
    return [*found, *([("--wire bf16", hosted.hops, "bf16")] if hosted.wire == "f32" else [])]


def compare(engine: Model, hops: tuple[Hop, ...], wire: str, demand: Demand, work: Workload) -> Hosted:
    """Both ways to split a model. engine: of the coordinator."""
    experts = ByExperts(engine, hops, wire, demand, work)
    layers = ByLayers(engine, hops, demand, work, wire)
    one, other = _by_experts(experts), _by_layers(layers)
    return Hosted(
        hops=hops, wire=wire, by_experts=one, by_layers=other, shares=tuple(experts.shares), runs=tuple(layers.runs),
        net_bytes={
            one.placement.name: round(experts.net_bytes() / work.batch),
            other.placement.name: round(layers.net_bytes / work.batch),
        },
        why=tuple(_why(one, other, experts, layers)),
    )  # fmt: skip


def _by_experts(plan: ByExperts) -> Rated:
    memory = plan.memory()
    if not all(tier.fits for tier in memory.values()):
        return Rated(placement=plan.placement, memory=memory, decode=None, prefill=None)
    step, prompt = plan.decode(), plan.prefill()
    decode = {end: plan.engine.seconds(step, end) for end in ENDS}
    prefill = None if prompt is None else {end: plan.engine.seconds(prompt, end) for end in ENDS}
    return Rated(placement=plan.placement, memory=memory, decode=decode, prefill=prefill)


def _by_layers(plan: ByLayers) -> Rated:
    memory = plan.memory()
    if not all(tier.fits for tier in memory.values()):
        return Rated(placement=plan.placement, memory=memory, decode=None, prefill=None)
    decode = {end: plan.decode(end) for end in ENDS}
    return Rated(placement=plan.placement, memory=memory, decode=decode, prefill=plan.prefill())


def _why(one: Rated, other: Rated, experts: ByExperts, layers: ByLayers) -> list[str]:
    """A sentence each."""
    if one.decode is None or other.decode is None:
        short = [f"{rated.placement.name} do not fit: {_missing(rated)}" for rated in (one, other) if not rated.fits]
        return short
    by_experts, by_layers = one.decode["mid"], other.decode["mid"]
    times = by_layers.seconds / by_experts.seconds
    faster, factor = (one, times) if times >= 1 else (other, 1 / times)
    count = sum(1 for layer in experts.engine.model.layers if layer.experts is not None)
    boundaries = sum(1 for run in layers.runs[1:] if run)
    net, trips = by_experts.terms.get(NET, 0.0) * 1e3, by_layers.terms.get(NET, 0.0) * 1e3
    return [
        f"{faster.placement.name} are {factor:.2f} times as fast for {_sequences(experts.work.batch)}",
        f"by experts a step takes {by_experts.seconds * 1e3:.2f} ms: in {net:.2f} of them {count} layers wait for all "
        "hosts, which read side by side, and the coordinator reads attention of all layers alone; by layers it takes "
        f"{by_layers.seconds * 1e3:.2f} ms: machines read one after the other, and {boundaries} round trips take "
        f"{trips:.2f}",
    ]


def _sequences(batch: int) -> str:
    return "one sequence" if batch == 1 else f"{batch} sequences together"


def _missing(rated: Rated) -> str:
    return ", ".join(f"{name} lacks {size(tier.missing)}" for name, tier in rated.memory.items() if not tier.fits)
