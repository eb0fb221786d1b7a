"""Who lies where: for every layer the device of its common weights and of its routed experts, and what that takes.

Policies are pure functions of a model's bytes and a machine; how VRAM is filled, how much of it is kept free, and what
`--placement` may say is what the engine does (`placement/placement.py`). Layers keep their experts together; the first
`n_cpu_moe` layers have theirs in RAM, as in llama.cpp's option of that name, counted over all layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import OptionError
from ..bandwidth_model.hardware import Device, Hardware
from ..placement import placement_file
from ..placement.placement import Policy, Tier, fill_from_last, parse
from ..placement.tier_memory import TierMemory, of_gpu, of_installed, of_needs
from .storage import Storage

CPU, DISK = "cpu", "disk"


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a run needs besides weights, in bytes: cache and states of all sequences by layer, activations of a pass.
    own_layer, own_cache: of the model's own layer that drafts, and hidden states that wait for it; own_beside_gpu: used
    wherever experts lie, else where all is in RAM."""

    cache: tuple[int, ...]
    activations: int
    own_layer: int = 0
    own_cache: int = 0
    own_beside_gpu: bool = False

    def own(self, is_in_ram: bool) -> int:
        """Bytes of the model's own layer that drafts, with its cache, where it is used."""
        return self.own_layer + self.own_cache if is_in_ram or self.own_beside_gpu else 0


@dataclass(frozen=True, kw_only=True)
class Placement:
    """`common[i]`, `experts[i]`: "gpu0", "gpu1", ..., "cpu" or "disk". `outside`: where head and final norm are."""

    name: str
    common: tuple[str, ...]
    experts: tuple[str, ...]
    outside: str

    @property
    def is_in_ram(self) -> bool:
        """Whether everything is."""
        return {*self.common, *self.experts, self.outside} == {CPU}

    @property
    def n_cpu_moe(self) -> int:
        """Layers from the first whose experts are not on a GPU: the last such layer decides."""
        return max((i + 1 for i, tier in enumerate(self.experts) if tier in (CPU, DISK)), default=0)


def table_of(placement: Placement, storage: Storage, is_head: bool = False) -> str:
    """Where the embedding lies: in RAM as long as experts are outside of VRAM, for a token reads one row of it; with
    the head, if it is that."""
    pairs = zip(placement.experts, storage.layers, strict=True)
    is_outside = any(tier in (CPU, DISK) and layer.experts for tier, layer in pairs)
    return CPU if is_outside and not is_head else placement.outside


def usable(device: Device) -> int | None:
    """Bytes of a device that a model may take."""
    if device.memory is None:
        return None
    return of_gpu(device.memory) if device.kind == "gpu" else of_installed(device.memory)


def in_ram(name: str, layers: int) -> Placement:
    """Everything in RAM, whether it fits or not."""
    where = (CPU,) * layers
    return Placement(name=name, common=where, experts=where, outside=CPU)


def on_cpu(storage: Storage, hardware: Hardware, demand: Demand) -> Placement:
    """Everything in RAM; experts that do not fit stay on the disk, if the machine has one."""
    count = len(storage.layers)
    assert hardware.cpu is not None
    fixed = storage.common + storage.held + sum(demand.cache) + demand.activations + demand.own(False)
    experts = _until_full(storage, [CPU] * count, fixed, hardware)
    return Placement(name="cpu", common=(CPU,) * count, experts=tuple(experts), outside=CPU)


def offloaded(storage: Storage, hardware: Hardware, demand: Demand, n_cpu_moe: int | None = None) -> Placement | None:
    """Common weights and cache on the first GPU, the experts of the first layers in RAM, those of the last layers
    wherever there is room on a GPU. `n_cpu_moe` None: as few in RAM as fit. None if the common weights do not fit."""
    count = len(storage.layers)
    rooms = {f"gpu{i}": usable(gpu) for i, gpu in enumerate(hardware.gpus)}
    used = dict.fromkeys(rooms, 0)
    used["gpu0"] = storage.common + sum(demand.cache) + demand.activations + demand.own(False)
    sizes = [layer.routed if layer.experts else 0 for layer in storage.layers]
    # What was asked for and is too much is said to be so in the memory table.
    placed = fill_from_last(sizes, rooms, used, first=n_cpu_moe or 0, must=n_cpu_moe is not None)
    experts = [tier or CPU for tier in placed]
    room = rooms["gpu0"]
    if room is not None and used["gpu0"] > room and n_cpu_moe is None:
        return None
    in_ram = any(e == CPU and storage.layers[i].experts for i, e in enumerate(experts))
    if in_ram and hardware.cpu is None:
        return None
    experts = _in_ram(storage, experts, hardware)
    name = "cpu-moe" if all(e in (CPU, DISK) for e in experts) else f"n-cpu-moe {_from_first(experts, storage)}"
    return Placement(name=name if in_ram else "gpu", common=("gpu0",) * count, experts=tuple(experts), outside="gpu0")


def _in_ram(storage: Storage, experts: list[str], hardware: Hardware) -> list[str]:
    """Experts beside a GPU, with those that RAM has no room for on the disk."""
    if hardware.cpu is None or not any(e == CPU and storage.layers[i].experts for i, e in enumerate(experts)):
        return experts
    return _until_full(storage, experts, storage.held, hardware)


def of_file(policy: Policy, storage: Storage, hardware: Hardware) -> Placement:
    """The placement in a file. Raises OptionError for one that splits a layer, whose time nobody can say."""
    assert policy.file is not None
    there = [Tier.GPU0, Tier.GPU1][: len(hardware.gpus)]
    tiers = [*there, Tier.CPU] if hardware.cpu is not None else there
    counts = [layer.experts for layer in storage.layers]
    found = placement_file.read(policy.file, counts, tiers)
    for i, row in enumerate(found.experts):
        if len(set(row)) > 1:
            where = ", ".join(sorted({tier.value for tier in row}))
            raise OptionError(
                f"{policy.file} splits the experts of layer {i} over {where}; a plan keeps a layer's together, since "
                "which are chosen how often is not known: place whole layers, or run it"
            )
    experts = _in_ram(storage, [row[0].value if row else CPU for row in found.experts], hardware)
    return Placement(name=found.name, common=("gpu0",) * len(counts), experts=tuple(experts), outside="gpu0")


def spread(storage: Storage, hardware: Hardware, demand: Demand) -> Placement:
    """Whole layers on the GPUs, filled in their order: everything in VRAM. What is too much stays with the last one."""
    rooms = {f"gpu{i}": usable(gpu) for i, gpu in enumerate(hardware.gpus)}
    used = dict.fromkeys(rooms, 0)
    used["gpu0"] = storage.outside + storage.held + demand.activations + demand.own(False)
    tiers, order, at = [], list(rooms), 0
    for layer, cache in zip(storage.layers, demand.cache, strict=True):
        size = layer.common + layer.routed + cache
        while at + 1 < len(order) and not _holds(rooms[order[at]], used[order[at]] + size):
            at += 1
            used[order[at]] += demand.activations
        used[order[at]] += size
        tiers.append(order[at])
    return Placement(name="gpu", common=tuple(tiers), experts=tuple(tiers), outside="gpu0")


def _holds(room: int | None, size: int) -> bool:
    return room is None or size <= room


def _until_full(storage: Storage, experts: list[str], taken: int, hardware: Hardware) -> list[str]:
    """Moves experts that RAM has no room for to the disk, if there is one; taken: bytes of what else RAM holds."""
    placed, room = list(experts), None if hardware.cpu is None else usable(hardware.cpu)
    if hardware.disk is None or room is None:
        return placed
    for i, layer in enumerate(storage.layers):
        if placed[i] == CPU and layer.experts:
            taken += layer.routed
            if taken > room:
                placed[i] = DISK
    return placed


def _from_first(experts: list[str], storage: Storage) -> int:
    return max((i + 1 for i, e in enumerate(experts) if e in (CPU, DISK) and storage.layers[i].experts), default=0)


def memory(placement: Placement, storage: Storage, hardware: Hardware, demand: Demand) -> dict[str, TierMemory]:
    """What every memory holds: "vram" (of several GPUs "vram0", "vram1"; "memory" where there is one for all), "ram",
    of it "pinned" for copies to a GPU, and "disk": the checkpoint."""
    found = {}
    for i, gpu in enumerate(hardware.gpus):
        name = "memory" if gpu.kind != "gpu" else "vram" if len(hardware.gpus) == 1 else f"vram{i}"
        found[name] = of_needs(_needs(f"gpu{i}", placement, storage, demand), usable(gpu))
    ram = _needs(CPU, placement, storage, demand)
    if hardware.cpu is not None:
        found["ram"] = of_needs(ram, usable(hardware.cpu))
    found["pinned"] = of_needs({"experts": ram["experts"] if hardware.gpus else 0}, None)
    found["disk"] = of_needs({"checkpoint": storage.total + sum(storage.left_out.values())}, None)
    return found


def _needs(tier: str, placement: Placement, storage: Storage, demand: Demand) -> dict[str, int]:
    """Bytes that one device holds, by what they are for."""
    layers = range(len(storage.layers))
    common = storage.common_on(tier, placement.common, placement.outside)
    cache = sum(demand.cache[i] for i in layers if placement.common[i] == tier)
    has_own = placement.outside == tier and demand.own(placement.is_in_ram) > 0
    return {
        "common weights": common,
        "experts": sum(storage.layers[i].routed for i in layers if placement.experts[i] == tier),
        "MTP layer": demand.own_layer if has_own else 0,
        "cache": cache + (demand.own_cache if has_own else 0),
        "embedding": storage.held if tier == table_of(placement, storage) else 0,
        "activations": demand.activations if cache or common else 0,
    }


def choices(storage: Storage, hardware: Hardware, demand: Demand) -> list[Placement]:
    """Every placement that is worth comparing on this machine."""
    found = []
    if hardware.gpus:
        found.append(spread(storage, hardware, demand))
        if filled := offloaded(storage, hardware, demand):
            found.append(filled)
        if hardware.cpu is not None and (none := offloaded(storage, hardware, demand, len(storage.layers))):
            found.append(none)
    if hardware.cpu is not None:
        found.append(on_cpu(storage, hardware, demand))
    return list({p.name: p for p in reversed(found)}.values())[::-1]


def named(text: str, storage: Storage, hardware: Hardware, demand: Demand) -> Placement:
    """The placement that --placement asks for: cpu, disk, gpu, cpu-moe, n-cpu-moe=N, or a file."""
    policy, count = parse(text), len(storage.layers)
    if hardware.cpu is None and policy.kind != "file" and policy != Policy("layers", 0):
        raise OptionError(f"--placement {text} needs RAM, and {hardware.name} names no CPU: add one to --hardware")
    if policy.kind == "disk" and hardware.disk is None:
        raise OptionError(f"--placement disk needs a disk, and {hardware.name} names none: add one to --hardware")
    if policy.kind in ("cpu", "disk"):
        return on_cpu(storage, hardware, demand)
    if not hardware.gpus:
        raise OptionError(f"--placement {text} needs a GPU, and {hardware.name} has none: add one to --hardware")
    if policy.kind == "file":
        return of_file(policy, storage, hardware)
    if text.strip().lower() == "gpu":
        return spread(storage, hardware, demand)
    layers = count if policy.layers is None else policy.layers
    if layers > count:
        raise OptionError(f"--placement n-cpu-moe={layers}: give a number of layers from 0 to {count}")
    placed = offloaded(storage, hardware, demand, layers)
    assert placed is not None, "a number of layers was asked for"
    return placed
