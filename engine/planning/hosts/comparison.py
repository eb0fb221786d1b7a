"""Experts or layers on hosts: both as a plan has placements, and which is faster and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ....errors import OptionError
from ....loaders.architecture.architecture import Architecture
from ...bandwidth_model.hardware import ENDS, FIXED, Hardware
from ...bandwidth_model.network.hops import Hop
from ...ledger.passes import CPU_DRAM, NET
from ..layouts import CPU, Demand
from ..speed import Model, Rated, Workload
from .by_experts import ByExperts
from .by_layers import ByLayers
from .vram import EXPERTS

Needs = Callable[[Hardware], Demand]  # what a run takes besides weights on a machine


@dataclass(frozen=True, kw_only=True)
class Hosted:
    """A model on hosts: by experts and by layers, bytes of a token on the wire, and why the faster one is. fills_vram:
    a GPU of the coordinator has experts; crossing: bytes of a token between it and RAM, by link and group;
    layers_in_vram: whose experts it has, None: there is no GPU."""

    hops: tuple[Hop, ...]
    wire: str
    by_experts: Rated
    by_layers: Rated
    shares: tuple[float, ...]
    runs: tuple[range, ...]
    net_bytes: dict[str, int]
    why: tuple[str, ...]
    fills_vram: bool
    crossing: dict[str, dict[str, int]]
    layers_in_vram: int | None

    def bytes_per_token(self, rated: Rated, engine: Model, work: Workload) -> dict[str, dict[str, int]]:
        """By memory and group, of one of the two."""
        tiers = engine.bytes_per_token(rated.placement, work)
        names, found = [CPU_DRAM, *(hop.name for hop in self.hops)], dict[str, dict[str, int]]()
        if rated is self.by_experts:
            whole = tiers.pop(CPU_DRAM, {})
            experts = whole.pop(EXPERTS, 0)
            found = {name: {EXPERTS: round(experts * s)} for name, s in zip(names, self.shares, strict=True) if s}
            found = {**tiers, **found, CPU_DRAM: {**whole, **found.get(CPU_DRAM, {})}, **self.crossing}
        else:
            where = [name for name, run in zip(names, self.runs, strict=True) for _ in run]
            found = engine.bytes_by_place(where, work)
        return {**found, NET: {EXPERTS if rated is self.by_experts else "hidden": self.net_bytes[rated.placement.name]}}

    def anew(self, engine: Model, needs: Needs, work: Workload) -> Hosted:
        """With these hosts and this wire, of another model or work."""
        return compare(engine, self.hops, self.wire, needs, work, fills_vram=self.fills_vram)

    @property
    def rated(self) -> tuple[Rated, Rated]:
        return self.by_experts, self.by_layers


def check(hardware: Hardware, model: Architecture) -> None:
    """Raises OptionError for a coordinator, or a model, that cannot be."""
    if not any(layer.experts for layer in model.layers):
        raise OptionError("--hosts: this model has no routed experts to put there: leave it out")
    if hardware.cpu is None:
        raise OptionError(f"--hosts: --hardware {hardware.name!r} names no CPU and RAM for the coordinator: add them")
    if len(hardware.gpus) > 1:
        count = len(hardware.gpus)
        raise OptionError(
            f"--hosts: a coordinator has one GPU at most, and --hardware names {count}: leave out the rest"
        )


def check_rest(hosted: Hosted) -> None:
    """Raises OptionError where experts are nowhere but in VRAM, which a run refuses, too."""
    if CPU not in hosted.by_experts.placement.experts:
        raise OptionError("--hosts: the GPU holds all experts, and leaves hosts none: leave it out")


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


def compare(
    engine: Model, hops: tuple[Hop, ...], wire: str, needs: Needs, work: Workload, *, fills_vram: bool = True
) -> Hosted:
    """Both ways to split a model. engine: of the coordinator; fills_vram: its GPU has experts of whole layers."""
    here = engine.hardware
    beside = replace(here, down=here.down or here.gpus[0].link) if here.gpus else here
    on_cpu = replace(here, gpus=(), fixed=FIXED["cpu"]) if here.gpus else here  # layers leave out a GPU
    experts = ByExperts(_on(engine, beside), hops, wire, needs(beside), work, fills_vram)
    layers = ByLayers(_on(engine, on_cpu), hops, needs(on_cpu), work, wire)
    one, other = _by_experts(experts), _by_layers(layers)
    crossing = {
        link: {group: round(size / work.batch) for group, size in groups.items()}
        for link, groups in experts.crossing_bytes().items()
    }
    return Hosted(
        hops=hops, wire=wire, by_experts=one, by_layers=other, shares=tuple(experts.shares), runs=tuple(layers.runs),
        net_bytes={
            one.placement.name: round(experts.net_bytes() / work.batch),
            other.placement.name: round(layers.net_bytes / work.batch),
        },
        why=tuple(_why(one, other, experts, layers)), fills_vram=fills_vram, crossing=crossing,
        layers_in_vram=experts.layers_in_vram,
    )  # fmt: skip


def _on(engine: Model, hardware: Hardware) -> Model:
    """The model on another machine."""
    return Model(engine.model, engine.storage, hardware, engine.distinct)


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
    gpus = experts.engine.hardware.gpus
    left_out = [f"layers on hosts leave out {gpus[0].name}"] if gpus else []
    if one.decode is None or other.decode is None:
        short = [f"{rated.placement.name} do not fit: {rated.lacks}" for rated in (one, other) if not rated.fits]
        return [*short, *left_out]
    by_experts, by_layers = one.decode["mid"], other.decode["mid"]
    times = by_layers.seconds / by_experts.seconds
    faster, factor = (one, times) if times >= 1 else (other, 1 / times)
    asking = zip(experts.engine.model.layers, experts.placement.experts, strict=True)
    count = sum(1 for layer, tier in asking if layer.experts is not None and tier == CPU)
    boundaries = sum(1 for run in layers.runs[1:] if run)
    net, trips = by_experts.terms.get(NET, 0.0) * 1e3, by_layers.terms.get(NET, 0.0) * 1e3
    reader = gpus[0].name if gpus else "the coordinator"
    return [
        f"{faster.placement.name} are {factor:.2f} times as fast for {_sequences(experts.work.batch)}",
        f"by experts a step takes {by_experts.seconds * 1e3:.2f} ms: in {net:.2f} of them {count} layers wait for all "
        f"hosts, which read side by side, and {reader} reads attention of all layers alone; by layers it takes "
        f"{by_layers.seconds * 1e3:.2f} ms: machines read one after the other, and {boundaries} round trips take "
        f"{trips:.2f}",
        *left_out,
    ]


def _sequences(batch: int) -> str:
    return "one sequence" if batch == 1 else f"{batch} sequences together"
