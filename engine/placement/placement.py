"""Where every routed expert lies: `Tier`, `Placement`, and the policies, pure functions of sizes.

    n_cpu_moe   the experts of the first N layers in RAM, those of the others in VRAM; N = all layers is `--cpu-moe`
    auto        as few of them in RAM as fit: VRAM is filled from the last layer on
    split       of the layers in VRAM the first ones on GPU 0, the others on GPU 1

All but the routed experts (attention, shared experts, norms, head, cache) has one place, `main`. This file knows no
tensor and no device, and imports no torch: plans use it too. Layers are counted over all layers, as in llama.cpp's
option of that name; a layer without experts has an empty row.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from ...errors import OptionError


def channel(tier: str) -> str:
    """The ledger's name for reading a memory: cpu_dram, gpu_hbm, gpu1_hbm, disk, net."""
    return {"cpu": "cpu_dram", "disk": "disk", "net": "net", "gpu0": "gpu_hbm"}.get(tier, f"{tier}_hbm")


class Tier(str, Enum):
    """A memory that holds experts, and what computes there."""

    GPU0 = "gpu0"
    GPU1 = "gpu1"
    CPU = "cpu"
    DISK = "disk"  # computed by the CPU, from RAM
    NET = "net"  # computed by other machines

    @property
    def channel(self) -> str:
        """The ledger's name for reading this memory."""
        return channel(self.value)


TIERS = tuple(Tier)  # the order in which their sums are added up


@dataclass(frozen=True, kw_only=True)
class Placement:
    """`experts[layer][expert]` is where that expert lies; `main` is the place of everything else. `name`: for
    people."""

    name: str
    main: Tier
    experts: tuple[tuple[Tier, ...], ...]

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Every tier in use, in the order of sums."""
        used = {self.main, *(tier for row in self.experts for tier in row)}
        return tuple(tier for tier in TIERS if tier in used)

    def tiers_of(self, layer: int) -> tuple[Tier, ...]:
        """The tiers that hold experts of a layer, in the order of sums."""
        return tuple(tier for tier in TIERS if tier in self.experts[layer])

    def count(self, layer: int, tier: Tier) -> int:
        """Experts of a layer on a tier."""
        return self.experts[layer].count(tier)

    def local_ids(self, layer: int, tier: Tier) -> list[int]:
        """By expert its number among those of the tier, in rising order; -1 for one that lies elsewhere."""
        numbers = accumulate((t is tier for t in self.experts[layer]), initial=0)
        return [number if t is tier else -1 for number, t in zip(numbers, self.experts[layer], strict=False)]


def all_on(tier: Tier, counts: Sequence[int]) -> Placement:
    """Everything on one tier; `counts`: experts by layer."""
    return Placement(name=tier.value, main=tier, experts=tuple((tier,) * count for count in counts))


def on_disk(counts: Sequence[int], main: Tier = Tier.CPU) -> Placement:
    """The experts in the model's file, everything else in RAM, or on a GPU."""
    return Placement(name="disk", main=main, experts=tuple((Tier.DISK,) * count for count in counts))


def on_hosts(counts: Sequence[int], name: str, main: Tier = Tier.CPU) -> Placement:
    """The experts on other machines, everything else here: in RAM, or on a GPU."""
    return Placement(name=name, main=main, experts=tuple((Tier.NET,) * count for count in counts))


def beside_hosts(counts: Sequence[int], sizes: Sequence[int], left: int) -> Placement:
    """As many whole layers' experts in so many bytes of VRAM as fit, from the last one down: each saves a round trip.
    The others on other machines. sizes: bytes of each layer's experts."""
    placed = fill_from_last(sizes, {Tier.GPU0.value: left}, {Tier.GPU0.value: 0})
    rows = tuple(((Tier.NET if tier is None else Tier.GPU0),) * n for tier, n in zip(placed, counts, strict=True))
    return Placement(name="auto", main=Tier.GPU0, experts=rows)


def n_cpu_moe(counts: Sequence[int], layers: int) -> Placement:
    """The experts of the first `layers` layers in RAM, the others on GPU 0."""
    rows = tuple((Tier.CPU if i < layers else Tier.GPU0,) * count for i, count in enumerate(counts))
    in_ram = any(Tier.CPU in row for row in rows)
    name = f"n-cpu-moe={layers}" if in_ram else "gpu"
    return Placement(name=name if any(Tier.GPU0 in row for row in rows) else "cpu-moe", main=Tier.GPU0, experts=rows)


def fill_from_last(
    sizes: Sequence[int],
    rooms: Mapping[str, int | None],
    used: Mapping[str, int],
    *,
    first: int = 0,
    must: bool = False,
) -> list[str | None]:
    """By layer the first of `rooms` that still holds its experts, from the last layer down to number `first`.

    sizes: bytes of each layer's experts, 0 for none. rooms: bytes that each memory has (None: no limit), used: of them
    taken already. Ends at the first layer that fits nowhere, or with `must` gives the last room what is too much.
    None: in RAM.
    """
    taken = dict(used)
    placed: list[str | None] = [None] * len(sizes)
    for i in reversed(range(first, len(sizes))):
        if not sizes[i]:
            continue
        tier = next((t for t, room in rooms.items() if room is None or taken[t] + sizes[i] <= room), None)
        if tier is None and not must:
            break
        placed[i] = tier = tier or list(rooms)[-1]
        taken[tier] += sizes[i]
    return placed


def auto(counts: Sequence[int], sizes: Sequence[int], room: int) -> Placement:
    """As few layers' experts in RAM as `room` bytes of VRAM allow; sizes: bytes of each layer's experts."""
    placed = fill_from_last(sizes, {Tier.GPU0: room}, {Tier.GPU0: 0})
    in_ram = [i for i, tier in enumerate(placed) if tier is None and counts[i]]
    return n_cpu_moe(counts, max(in_ram, default=-1) + 1)


def auto_split(
    counts: Sequence[int], sizes: Sequence[int], rooms: Mapping[Tier, int], shares: tuple[float, float]
) -> Placement:
    """As few layers' experts in RAM as two GPUs hold when the others are dealt out by `shares`."""
    for layers in range(len(counts) + 1):
        placement = split(n_cpu_moe(counts, layers), sizes, shares)
        if all(expert_bytes(placement, sizes, tier) <= rooms[tier] for tier in (Tier.GPU0, Tier.GPU1)):
            break
    return placement


def split(placement: Placement, sizes: Sequence[int], shares: tuple[float, float]) -> Placement:
    """Deals the layers whose experts are on GPU 0 out over both GPUs: the first ones stay, up to that share of bytes
    (a layer goes where its middle falls)."""
    total = expert_bytes(placement, sizes, Tier.GPU0)
    border, before = total * shares[0] / sum(shares), 0
    rows = []
    for row, size in zip(placement.experts, sizes, strict=True):
        is_on_gpu = Tier.GPU0 in row
        moves = is_on_gpu and before + size / 2 >= border
        rows.append((Tier.GPU1,) * len(row) if moves else row)
        before += size if is_on_gpu else 0
    name = f"{placement.name}, split {shares[0]:g},{shares[1]:g}"
    return Placement(name=name, main=placement.main, experts=tuple(rows))


def expert_bytes(placement: Placement, sizes: Sequence[int], tier: Tier) -> int:
    """Bytes of routed experts that a tier holds; sizes: bytes of each layer's experts."""
    return sum(bytes_by_layer(placement, sizes, tier))


def bytes_by_layer(placement: Placement, sizes: Sequence[int], tier: Tier) -> list[int]:
    """Of each layer's routed experts the bytes that a tier holds."""
    rows = zip(placement.experts, sizes, strict=True)
    return [size // max(1, len(row)) * row.count(tier) for row, size in rows]


class Policy(NamedTuple):
    """What was asked for. kind: "cpu", "disk", "hosts", "auto", "layers" (the experts of so many layers in RAM; None:
    of all), "file"."""

    kind: str
    layers: int | None = None
    file: Path | None = None


def parse(text: str) -> Policy:
    """The policy that --placement names: cpu, disk, gpu, auto, cpu-moe, n-cpu-moe=N, or a .json file."""
    if text.lower().endswith(".json"):
        return Policy("file", file=Path(text))
    word, _, number = text.strip().lower().replace("_", "-").partition("=")
    simple = {
        "cpu": Policy("cpu"), "disk": Policy("disk"), "hosts": Policy("hosts"), "auto": Policy("auto"),
        "gpu": Policy("layers", 0), "cpu-moe": Policy("layers"),
    }  # fmt: skip
    if word in simple and not number:
        return simple[word]
    if word == "n-cpu-moe":
        return layers_in_ram(number)
    raise OptionError(f"--placement is {text!r}{nearest(word, [*simple, 'n-cpu-moe'])}; {CHOICES}")


def check_file(policy: Policy) -> None:
    """Raises OptionError for a policy of a file that is not there."""
    if policy.file is not None and not policy.file.exists():
        raise OptionError(f"cannot read the placement {policy.file}: there is no such file; {CHOICES}")


PLACES = "auto, cpu, disk, hosts, gpu, cpu-moe, n-cpu-moe=N"
CHOICES = f"there are {PLACES}, and a file NAME.json"


def layers_in_ram(value: int | str) -> Policy:
    """The policy of --n-cpu-moe: a number of layers, or "auto"."""
    if value == "auto":
        return Policy("auto")
    if isinstance(value, bool) or not str(value).isdecimal():
        raise OptionError(f"--n-cpu-moe is {value!r}; give a number of layers from 0 on, or auto")
    return Policy("layers", int(value))


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at what may have been meant, or nothing."""
    close = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f" (did you mean {close[0]}?)" if close else ""
