"""What the system says about itself that decides on speed: read once, judged by `checks.py`. Judges nothing."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from ...kernels import isa, limits
from ...kernels.context import Context
from ..bandwidth_model.profile import Profile
from ..devices.host import cpu_kernels
from ..devices.pcie import PciLink, _text, pci_links
from ..measure.quiet_samples import Pace

CPUS = Path("/sys/devices/system/cpu")
NODES = Path("/sys/devices/system/node")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One machine as this process sees it. None: the system does not say.

    huge_pages: the mode of transparent huge pages. clock: the share of its highest frequency that a busy core runs at.
    cores: those that this process has time on. stolen, throttled: share of time that other guests, or the quota of the
    control group, take. cpu_nodes: NUMA nodes of the CPUs that this process may use, memory_nodes: those it may take
    memory from, nodes: bytes of RAM by node.
    stream_by_threads: plain reads, bytes per second. pace: seconds that the same work takes now, over those of the
    undisturbed machine in the profile. links: those of GPUs and drives.
    """

    huge_pages: str | None = None
    isa: str = "avx2"
    available_isas: tuple[str, ...] = ("avx2",)
    cpu_flags: frozenset[str] = frozenset()
    threads: int = 1
    cores: int = 1
    clock: float | None = None
    stolen: float | None = None
    throttled: float | None = None
    cpu_nodes: frozenset[int] = frozenset()
    memory_nodes: frozenset[int] = frozenset()
    nodes: dict[int, int] = field(default_factory=dict)
    stream_by_threads: dict[int, float] = field(default_factory=dict)
    pace: float | None = None
    links: tuple[PciLink, ...] = ()


def gather(profile: Profile | None, context: Context, load: Callable[[], object], seconds: float = 0.5) -> Facts:
    """The facts of this machine and of a run in this context; clock and shares of time are taken while `load` runs
    again and again for `seconds`: nobody stops or slows down an idle thread."""
    cpus = allowed_cpus()
    stolen, throttled = _over(seconds, load)
    clock = _clock(cpus)
    nodes = node_sizes()
    return Facts(
        huge_pages=_bracketed(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        isa=context.isa,
        available_isas=tuple(isa.available_isas()),
        cpu_flags=_flags(),
        threads=context.threads,
        cores=limits.default_threads(len({core_of(cpu) for cpu in cpus})),
        clock=clock,
        stolen=stolen,
        throttled=throttled,
        cpu_nodes=frozenset(cpu_kernels().numa_nodes()),
        memory_nodes=frozenset(_status_list("Mems_allowed_list")),
        nodes=nodes,
        stream_by_threads={} if profile is None else {int(n): r for n, r in profile.stream_by_threads.items()},
        pace=_pace(profile, context, seconds),
        links=tuple(pci_links()),
    )


def _bracketed(path: Path) -> str | None:
    """The chosen word of a file like "always [madvise] never"."""
    match = re.search(r"\[(\w+)\]", _text(path) or "")
    return match[1] if match else None


def numbers(text: str) -> set[int]:
    """The numbers of a list such as "0-3,8"."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def _status_list(name: str) -> set[int]:
    lines = (_text(Path("/proc/self/status")) or "").splitlines()
    return next((numbers(line.split(":", 1)[1].strip()) for line in lines if line.startswith(f"{name}:")), set())


def allowed_cpus() -> set[int]:
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def core_of(cpu: int) -> tuple[str | None, str | None] | int:
    """What CPUs of one core have in common."""
    where = CPUS / f"cpu{cpu}" / "topology"
    found = _text(where / "physical_package_id"), _text(where / "core_id")
    return cpu if found == (None, None) else found


def _flags() -> frozenset[str]:
    for line in (_text(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def _clock(cpus: Iterable[int]) -> float | None:
    """Of the fastest core: idle ones are slow on purpose."""
    shares = []
    for cpu in cpus:
        now, most = (_text(CPUS / f"cpu{cpu}" / "cpufreq" / name) for name in ("scaling_cur_freq", "cpuinfo_max_freq"))
        if now and most and int(most):
            shares.append(int(now) / int(most))
    return max(shares, default=None)


def node_sizes() -> dict[int, int]:
    """Bytes of RAM by NUMA node."""
    found = {}
    for folder in NODES.glob("node[0-9]*"):
        match = re.search(r"MemTotal:\s+(\d+) kB", _text(folder / "meminfo") or "")
        if match:
            found[int(folder.name.removeprefix("node"))] = 1024 * int(match[1])
    return found


def _pace(profile: Profile | None, context: Context, seconds: float) -> float | None:
    """The median pace over some time, over that of the profile."""
    if profile is None or not profile.pace_s:
        return None
    pace = Pace(context)
    end = time.perf_counter() + seconds
    found = [pace()]
    while time.perf_counter() < end:
        found.append(pace())
    return statistics.median(found) / profile.pace_s


def _over(seconds: float, load: Callable[[], object]) -> tuple[float | None, float | None]:
    """Shares of time stolen by other guests, and in which the control group's quota stopped us."""
    before, usage = psutil.cpu_times(), _throttled_s()
    start = time.perf_counter()
    while time.perf_counter() < start + seconds:
        load()
    after, wall = psutil.cpu_times(), time.perf_counter() - start
    total = sum(after) - sum(before)
    steal = getattr(after, "steal", None)
    stolen = (steal - getattr(before, "steal", 0.0)) / total if steal is not None and total > 0 else None
    now = _throttled_s()
    return stolen, None if usage is None or now is None else (now - usage) / wall


def _throttled_s() -> float | None:
    """Seconds in which the quota of a group that this process is in stopped it: of the one that did most."""
    found = [seconds for group in limits.groups("cpu") if (seconds := _stopped(group)) is not None]
    return max(found, default=None)


def _stopped(group: Path) -> float | None:
    words = (_text(group / "cpu.stat") or "").split()
    stat = dict(zip(words[::2], words[1::2], strict=False))
    units = {"throttled_usec": 1e-6, "throttled_time": 1e-9}  # of version 2 and 1
    return next((int(stat[name]) * unit for name, unit in units.items() if name in stat), None)
