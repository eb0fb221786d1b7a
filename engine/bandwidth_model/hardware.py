"""A machine as numbers: memory, bandwidth and compute of each tier, with what is sure of them and what is not.

Three sources: the profile that was measured here (`headrace measure`), parts by name from `parts.json`, or a JSON file.
Parts have nominal figures with their source; what a kernel reaches of them is a range, given below with its reason,
and a prediction for named parts is as wide as these ranges. Units: bytes, bytes/s, FLOP/s, seconds.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from ...errors import OptionError
from ...loaders.quants.by_format import ByFormat
from ..ledger.passes import CPU_DRAM, D2D, D2H, H2D
from ..placement.placement import channel
from ..units import GB

IN_CACHES = 64 << 20  # bytes of weights up to which DRAM does not bound a model
End = Literal["low", "mid", "high"]
ENDS: tuple[End, ...] = ("low", "mid", "high")
Kind = Literal["gpu", "cpu", "unified", "on-chip", "disk"]


@dataclass(frozen=True)
class Range:
    """A value between bounds: slowest, expected, fastest."""

    low: float
    mid: float
    high: float

    def at(self, end: End) -> float:
        """The value at one end."""
        return self.mid if end == "mid" else self.low if end == "low" else self.high

    def times(self, factor: float) -> Range:
        return Range(self.low * factor, self.mid * factor, self.high * factor)


def exactly(value: float) -> Range:
    return Range(value, value, value)


# What is reached of a nominal figure. Nothing here was measured on the part that is named: these are assumptions.
REACHED: dict[str, tuple[Range, str]] = {
    "gpu memory": (Range(0.60, 0.80, 0.90), "an H100 reaches 2.8 of 3.35 TB/s; whole decode steps 70 % of that"),
    "ram": (
        Range(0.50, 0.70, 0.85),
        "seen on servers: 50 to 67 %; our kernels reach 76 to 89 % of a plain read",
    ),
    "gpu compute": (Range(0.30, 0.50, 0.75), "grouped products of a few thousand tokens"),
    "link": (Range(0.60, 0.80, 0.88), "55 of 63 GB/s for pinned memory at best, 15 to 18 where it is staged"),
    "disk": (Range(0.30, 0.60, 0.90), "reads of one expert are shorter than sequential reads"),
}
# bf16 products of one core, FLOP/s, by instruction set: 512 tokens of the engine's own expert kernel on 2 cores with
# AMX (1.1 to 1.3 TFLOP/s), the same without AMX (2.6 times slower); AVX2 has half the vector width.
CORE_FLOPS = {
    "amx": Range(0.25e12, 0.5e12, 0.65e12),
    "avx512": Range(0.08e12, 0.2e12, 0.3e12),
    "avx2": Range(0.03e12, 0.08e12, 0.15e12),
    "portable": Range(0.002e12, 0.01e12, 0.03e12),
}


def core_flops(isa: str) -> Range:
    """Of one core by the name of the kernels' instruction set ("avx512_vnni" is "avx512")."""
    return CORE_FLOPS[next((kind for kind in CORE_FLOPS if isa.startswith(kind)), "portable")]


# Hand-off between GPU and CPU in every layer with experts in RAM: engines were seen at 26 to several hundred us.
SYNC = Range(400e-6, 80e-6, 30e-6)
# Everything that a step costs once: scheduler, sampling, launches.
FIXED = {"gpu": Range(5e-3, 1e-3, 0.3e-3), "cpu": Range(3e-3, 1e-3, 0.3e-3)}
LANE = {3: 0.985 * GB, 4: 1.969 * GB, 5: 3.938 * GB, 6: 7.563 * GB}  # bytes/s of one PCIe lane and direction


@dataclass(frozen=True, kw_only=True)
class Device:
    """One tier that holds weights and computes on them. `memory` None: not said, so as much as it takes."""

    name: str
    kind: Kind
    memory: int | None
    nominal: float
    bandwidth: Range
    flops: Range | None = None
    link: Range | None = None
    by_format: dict[str, float] = field(default_factory=dict)  # measured: bytes/s of the expert kernels
    estimates: Mapping[str, str] = field(default_factory=dict)  # formats of these that were not, but by another's rate
    dense_by_format: dict[str, float] = field(default_factory=dict)  # measured: of single matrices
    # measured: by format, time with so many tokens over time with one; of matrices, or of experts
    slowdown: Callable[[str, float, bool], float] | None = None
    cache_s: Callable[[float], float] | None = None  # measured: seconds for a byte of cache, by FLOPs for a byte
    isa: str = "avx2"
    source: str = ""
    doubt: str = ""  # why what was measured may be off, and what to do

    def measured(self, format: str, experts: bool) -> float | None:
        """Bytes per second of the kernel for this format, if it was measured."""
        return (self.by_format if experts else self.dense_by_format).get(format)

    def reads(self, format: str, experts: bool) -> Range:
        """Bandwidth of the kernel that reads this format: measured where it was, else that of the device."""
        known = self.measured(format, experts)
        return Range(known * 0.9, known, known * 1.1) if known else self.bandwidth

    def estimated(self, formats: Iterable[str]) -> str:
        """For people: which of these formats have rates that are estimated, and from what; "": none."""
        each = ", ".join(f"{name} (from {self.estimates[name]})" for name in formats if name in self.estimates)
        return f"rates that were not measured are estimated: {each}; headrace measure --formats" if each else ""

    def mean_rate(self, read: ByFormat, experts: bool) -> float:
        """Bytes per second of all of it, each format at its own bandwidth."""
        return read.total / sum(size / self.reads(name, experts).mid for name, size in read.parts)


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A machine: GPUs in the order in which they are filled, the CPU with its RAM, a disk that experts may stay on."""

    name: str
    gpus: tuple[Device, ...] = ()
    cpu: Device | None = None
    disk: Device | None = None
    sync: Range = SYNC
    fixed: Range = FIXED["cpu"]
    layer: Range = Range(0.0, 0.0, 0.0)  # what a layer costs besides what it reads and computes, where it was measured
    more_tokens: Callable[[float], float] | None = None  # measured: what tokens but the first add to that
    shared: Range = Range(0.0, 0.0, 0.0)  # what its shared expert adds
    logit: Range = Range(0.0, 0.0, 0.0)  # what every logit of a pass costs
    row: Range = Range(0.0, 0.0, 0.0)  # what every sequence but the first adds to a pass, outside of its layers
    measured: bool = False
    # Of a run: from the first GPU down and to the second; by format, the shares of their rates that the CPU's experts
    # and copies up keep beside each other; where its figures come from, for people.
    down: Range | None = None
    across: Range | None = None
    kept: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    sources: tuple[str, ...] = ()

    @cached_property
    def memories(self) -> dict[str, Device]:
        """Who computes from a memory, by its name in the ledger."""
        cpu = {} if self.cpu is None else {CPU_DRAM: self.cpu}
        return {**cpu, **{channel(f"gpu{i}"): gpu for i, gpu in enumerate(self.gpus)}}

    @cached_property
    def links(self) -> dict[str, Range]:
        """Rates of links and of the disk, by their names in the ledger."""
        up, disk = self.gpus[0].link if self.gpus else None, None if self.disk is None else self.disk.bandwidth
        found = {H2D: up, D2H: self.down, D2D: self.across, channel("disk"): disk}
        return {name: rate for name, rate in found.items() if rate is not None}

    @property
    def devices(self) -> tuple[Device, ...]:
        return (*self.gpus, *(d for d in (self.cpu, self.disk) if d is not None))


MEMORY = re.compile(r"(ddr[345]|lpddr5x?|mrdimm)")


@cache
def parts() -> dict[str, dict[str, Any]]:
    """The catalogue, by name."""
    text = Path(__file__).with_name("parts.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def parse(text: str, this: Device | None = None) -> Hardware:
    """A machine from names of parts: "rtx-3090, epyc-9005-8ch, 768gb", "2x rtx-3090, ddr5-6000-2ch, 64gb, nvme-gen4".

    "NNNgb" is the size of the RAM, "Nx" repeats a part, "ddr5-SPEED-Nch" is memory by channels, "NNcores" are the
    CPU's, "this" is the CPU of this machine as it was measured. Raises OptionError for an unknown part, with the
    nearest names.
    """
    plain = re.sub(r"(max|8[345]\d\d)\+(?=[\s,]|$)", r"\1", text.lower())  # a plus that is part of a name
    words = [part for word in re.split("[,+]", plain) if word.strip() for part in _apart(word.strip())]
    if not words:
        raise OptionError("--hardware is empty: name parts, as in 'rtx-3090, epyc-9005-8ch, 768gb'")
    gpus: list[Device] = []
    cpu: Device | None = None
    disk: Device | None = None
    ram = cores = None
    for word in words:
        if match := re.fullmatch(r"(?:ram\s*=?\s*)?(\d+(?:\.\d+)?)\s*(gb|tb)", word):
            ram = positive("RAM", float(match[1])) * (1000 if match[2] == "tb" else 1) * GB
        elif match := re.fullmatch(r"(\d+)\s*-?cores", word):
            cores = int(positive("cores", int(match[1])))
        else:
            count, device = (1, this) if word == "this" and this is not None else _repeated(word)
            if device.kind in ("gpu", "unified", "on-chip"):
                gpus += [device] * count
            elif device.kind == "disk":
                disk = device
            elif cpu is not None:
                raise OptionError(f"--hardware names two CPUs, {cpu.name} and {device.name}: leave one out")
            else:
                cpu = replace(device, bandwidth=device.bandwidth.times(count), nominal=device.nominal * count)
    return _assemble(text, gpus, cpu, disk, ram, cores)


def _apart(word: str) -> list[str]:
    """A CPU or its memory, and what stands behind it: "ddr5-6000-2ch 96gb 16cores". A GPU's memory is its own."""
    match = re.fullmatch(r"(.*\S)\s+(\d+(?:\.\d+)?\s*[gt]b|\d+\s*-?cores)", word)
    before = _apart(match[1]) if match else []
    key = _key(re.sub(r"^\d+\s*x\s*", "", before[0])) if before else ""
    has_ram = MEMORY.match(key) or (_entry(key) or {}).get("kind") in ("cpu", "unified")
    return [*before, match[2]] if match and has_ram else [word]


def _assemble(
    text: str, gpus: list[Device], cpu: Device | None, disk: Device | None, ram: float | None, cores: int | None
) -> Hardware:
    shared = [g for g in gpus if g.kind != "gpu"]
    if shared and (len(gpus) > 1 or cpu is not None):
        raise OptionError(f"{shared[0].name} has one memory for everything: name it alone, not beside other parts")
    if (ram or cores) and shared:
        shared[0] = gpus[0] = replace(shared[0], memory=int(ram)) if ram else shared[0]
    elif (ram or cores) and cpu is None:
        raise OptionError("--hardware has RAM or cores and no CPU or board: add one, as in 'ddr5-6000-2ch'")
    if cpu is not None and ram:
        cpu = replace(cpu, memory=int(ram))
    if cpu is not None and cores:
        cpu = replace(cpu, flops=CORE_FLOPS[cpu.isa].times(cores))
    if not gpus and cpu is None:
        raise OptionError(f"--hardware {text!r} has nothing that computes: add a GPU or a CPU")
    return Hardware(name=text.strip(), gpus=tuple(gpus), cpu=cpu, disk=disk, fixed=FIXED["gpu" if gpus else "cpu"])


def positive(what: str, value: float) -> float:
    if not 0 < value < 1e9:
        raise OptionError(f"--hardware: {what} is {value:g}: give a number above 0")
    return value


def _repeated(word: str) -> tuple[int, Device]:
    match = re.fullmatch(r"(\d+)\s*x\s*[-\s]?(\S.*)", word)
    count, name = (int(match[1]), match[2]) if match else (1, word)
    if count < 1:
        raise OptionError(f"--hardware: {word!r} is {count} parts: give at least one")
    return count, part(name)


# How people write parts of the catalogue: a pattern of the whole name, and the catalogue's.
SPELLINGS = (
    (r"(?:rtx-?)?(\d{4})-?(ti)?-?(super)?(-\d+gb)?", r"rtx-\1-\2-\3\4"),
    (r"epyc-?([79])\d\d(\d)[a-z]*", r"epyc-\g<1>00\2"),
    (r"threadripper-(?:pro-)?(\d)\d{3}wx", r"threadripper-pro-\g<1>000"),
    (r"threadripper-(\d)\d{3}x", r"threadripper-\g<1>000"),
    (r"xeon-(?:(?:gold|platinum|silver)-)?[4-8]3\d\d[a-z]*|(?:xeon-)?ice-lake", "xeon-3rd"),
    (r"xeon-(?:(?:gold|platinum|silver)-)?[4-8]4\d\d[a-z]*\+?|(?:xeon-)?sapphire-rapids", "xeon-4th"),
    (r"xeon-(?:(?:gold|platinum|silver)-)?[4-8]5\d\d[a-z]*\+?|(?:xeon-)?emerald-rapids", "xeon-5th"),
    (r"(?:xeon-)?granite-rapids|xeon-69\d\dp", "xeon-6900p"),
    (r"(?:ryzen-)?ai-max\+?-(?:pro-)?395", "strix-halo"),
    (r"gb10", "dgx-spark"),
)


def _key(name: str) -> str:
    """A part's name as the catalogue spells it."""
    return re.sub(r"^((nvidia|amd|intel|apple|geforce|radeon)-)+", "", re.sub(r"[\s_]+", "-", name.strip().lower()))


def _spelt(key: str) -> list[str]:
    """A name, and as the catalogue would spell it."""
    spelt = [match.expand(to) for pattern, to in SPELLINGS if (match := re.fullmatch(pattern, key))]
    return [key, *(re.sub("-+", "-", one).strip("-") for one in spelt)]


def _entry(key: str) -> dict[str, Any] | None:
    """What the catalogue has under a name, as people write it: "3090", "epyc-9654", "xeon-4th-4ch" (of eight channels),
    "rtx-3060-12gb". None: nothing. Raises OptionError for a part that there is, with another memory."""
    if found := next((parts()[one] for one in _spelt(key) if one in parts()), None):
        return found
    match = re.fullmatch(r"(.+)-(\d+)(ch|gb)", key)
    found = _entry(match[1]) if match else None
    if match is None or found is None or found["kind"] not in (("cpu",) if match[3] == "ch" else ("gpu",)):
        return None
    count, there = int(match[2]), found["channels" if match[3] == "ch" else "memory_gb"]
    if match[3] == "gb" and count == there:
        return found
    if match[3] == "gb" or not 0 < count <= there:
        unit = "GB" if match[3] == "gb" else "channels"
        raise OptionError(f"--hardware: {found['name']} has {there} {unit}, not {count}: leave that out")
    name = f"{found['name'].split(',')[0]}, {count} channels of {found['name'].split(' of ')[-1]}"
    return {**found, "channels": count, "name": name}


def part(name: str) -> Device:
    """A part of the catalogue, or memory by channels; raises OptionError with the nearest names."""
    key = _key(name)
    if match := re.fullmatch(rf"{MEMORY.pattern}-(\d+)-(\d+)ch", key):
        speed, channels = int(match[2]), int(match[3])
        if not (speed and channels):
            raise OptionError(f"--hardware: {name!r} has no bandwidth: speed and channels must be above 0")
        entry = {"kind": "cpu", "name": name, "channels": channels, "mts": speed, "isa": "avx2", "source": "as given"}
        return device(entry)
    if re.fullmatch(rf"{MEMORY.pattern}(-\d+)?", key):
        whole = key if "-" in key else f"{key}-SPEED"
        raise OptionError(
            f"--hardware: {name!r} does not say how many channels it has: write {whole}-2ch, or 4ch, 8ch (of 64 bits, "
            "a laptop with LPDDR has 2 as a rule)"
        )
    if (known := _entry(key)) is None:
        kin = [one for one in parts() if one.startswith(tuple(f"{name}-" for name in _spelt(key)))]
        near = kin or difflib.get_close_matches(key, parts(), n=3, cutoff=0.4) or sorted(parts())[:3]
        raise OptionError(
            f"--hardware: there is no part {name!r}; nearest: {', '.join(near)}. Any memory is ddr5-SPEED-Nch, any "
            "other machine a JSON file (docs/bandwidth-model.md)"
        )
    return device(known)


def device(entry: dict[str, Any]) -> Device:
    """A device from an entry of the catalogue or of a JSON file."""
    kind: Kind = entry["kind"]
    isa = entry.get("isa", "avx2")
    if kind == "cpu":
        nominal = entry.get("bandwidth_gbs", 0) * GB or entry["channels"] * entry["mts"] * 8e6
        flops = CORE_FLOPS[isa].times(entry["cores"]) if entry.get("cores") else None
        reached = REACHED["ram"][0]
    else:
        nominal = entry["bandwidth_gbs"] * GB
        reached = REACHED["disk" if kind == "disk" else "gpu memory"][0]
        rate = entry.get("bf16_tflops")
        flops = REACHED["gpu compute"][0].times(rate * 1e12) if rate else None
    memory = entry.get("memory_gb")
    return Device(
        name=entry["name"],
        kind=kind,
        memory=int(memory * GB) if memory else None,
        nominal=nominal,
        bandwidth=exactly(entry["sustained_gbs"] * GB) if entry.get("sustained_gbs") else reached.times(nominal),
        flops=flops,
        link=_link(entry["pcie"]) if entry.get("pcie") else None,
        isa=isa,
        source=entry.get("source", ""),
    )


def _link(text: str) -> Range:
    """The range of a PCIe link such as "4.0x16"."""
    match = re.fullmatch(r"(\d)(?:\.0)?\s*x\s*(\d+)", str(text))
    if not match or int(match[1]) not in LANE or not int(match[2]):
        raise OptionError(f"pcie is {text!r}: give generation and lanes, as in '4.0x16'")
    return REACHED["link"][0].times(LANE[int(match[1])] * int(match[2]))
