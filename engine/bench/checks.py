"""What slows a machine down: one small function a cause, from facts to a finding or None. Reads nothing itself.

`share` is the part of a step's time that the cause takes where that can be told from the facts, else None: a guess
would look like a measurement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .system_facts import Facts

ISA_FLAGS = {"amx": "amx_bf16", "avx512": "avx512_vnni", "avx2": "avx2"}  # best first; what /proc/cpuinfo calls them
ONE_CHANNEL = 26e9  # bytes/s: a channel of DDR4-3200 gives 25.6e9, of DDR5-4800 38.4e9
FLAT = 1.2  # reads by all threads over those by one, below which one channel, or a quota, is likely
SLOW_CLOCK, STOLEN = 0.7, 0.05
SLOW_PACE = 1.12  # over that of the undisturbed machine; the same slack as in pace.py


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One cause: what was seen, what to do, and the share of a step's time that it takes (None: not known)."""

    cause: str
    seen: str
    remedy: str
    share: float | None = None


def huge_pages(facts: Facts) -> Finding | None:
    if facts.huge_pages != "never":
        return None
    return Finding(
        cause="no huge pages",
        seen="transparent huge pages are switched off",
        remedy="echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
    )


def unused_isa(facts: Facts) -> Finding | None:
    """An instruction set that the CPU has, better than the one in use."""
    best = next((name for name, flag in ISA_FLAGS.items() if flag in facts.cpu_flags), None)
    order = list(ISA_FLAGS)
    if best is None or (facts.isa in order and order.index(facts.isa) <= order.index(best)):
        return None
    is_forced = best in facts.available_isas
    return Finding(
        cause=f"{best} unused",
        seen=f"the CPU has {best}, the kernels run on {facts.isa}",
        remedy="unset HEADRACE_ISA" if is_forced else "build with a newer compiler, or allow it in the hypervisor",
    )


def smt_siblings(facts: Facts) -> Finding | None:
    if facts.threads <= facts.cores:
        return None
    by = facts.stream_by_threads
    share = max(0.0, 1 - by[facts.threads] / by[facts.cores]) if {facts.threads, facts.cores} <= set(by) else None
    return Finding(
        cause="SMT siblings",
        seen=f"{facts.threads} threads on {facts.cores} cores: two on a core share its path to memory",
        remedy=f"--threads {facts.cores}",
        share=share,
    )


def too_few_threads(facts: Facts) -> Finding | None:
    if facts.threads >= facts.cores:
        return None
    return Finding(
        cause="idle cores",
        seen=f"{facts.threads} threads, {facts.cores} cores may be used",
        remedy=f"--threads {facts.cores}",
    )


def single_channel(facts: Facts) -> Finding | None:
    """Memory that reads no faster with all threads than with one, or no faster than one channel."""
    by = facts.stream_by_threads
    if not by or max(by) < 4:
        return None
    every, one = by[max(by)], by.get(1)
    is_flat = one is not None and every < FLAT * one
    if every >= ONE_CHANNEL and not is_flat:
        return None
    flat = f", one thread alone {one / 1e9:.1f}" if is_flat and one is not None else ""
    return Finding(
        cause="single-channel-like bandwidth",
        seen=f"{max(by)} threads read {every / 1e9:.1f} GB/s{flat}",
        remedy="put a memory module into every channel (sudo dmidecode -t memory lists them)",
        share=0.5,  # a second channel reads twice as fast
    )


def throttling(facts: Facts) -> Finding | None:
    if facts.clock is None or facts.clock >= SLOW_CLOCK:
        return None
    return Finding(
        cause="throttling",
        seen=f"a busy core runs at {facts.clock:.0%} of its highest frequency",
        remedy="look at cooling and power limits; sudo cpupower frequency-set -g performance",
    )


def stolen_time(facts: Facts) -> Finding | None:
    if facts.stolen is None or facts.stolen < STOLEN:
        return None
    return Finding(
        cause="stolen time",
        seen=f"other guests of this host take {facts.stolen:.0%} of the time",
        remedy="use a machine with cores of its own",
        share=facts.stolen,
    )


def slow_pace(facts: Facts) -> Finding | None:
    """Cores that are slower than when the profile was taken, though nobody takes time from them."""
    if facts.pace is None or facts.pace <= SLOW_PACE:
        return None
    return Finding(
        cause="slow cores",
        seen=f"the same work takes {facts.pace:.2f} times as long as on this machine undisturbed",
        remedy="end what else runs; if nothing does, another guest shares the cores: use a machine of its own",
        share=1 - 1 / facts.pace,
    )


def pcie_width(facts: Facts) -> Finding | None:
    """A link with fewer lanes than the device has."""
    narrow = [link for link in facts.links if 0 < link.lanes < link.most_lanes]
    if not narrow:
        return None
    return Finding(
        cause="PCIe link below its width",
        seen="; ".join(f"{link.device} runs with {link.lanes} of {link.most_lanes} lanes" for link in narrow),
        remedy="put it into a slot with all lanes, reseat it, or look for lane sharing in the board's manual",
    )


def pcie_speed(facts: Facts) -> Finding | None:
    """A link below its generation. A GPU that idles lowers it by itself, so only those that are busy or do not do that
    can be told; hence the remedy's first half."""
    slow = [link for link in facts.links if 0 < link.speed < link.most_speed]
    if not slow:
        return None
    return Finding(
        cause="PCIe link below its speed",
        seen="; ".join(f"{link.device} runs at {link.speed:g} of {link.most_speed:g} GT/s" for link in slow),
        remedy="look again while it works (an idle GPU slows its link down), then at the slot's generation in the BIOS",
    )


def cpu_quota(facts: Facts) -> Finding | None:
    if facts.throttled is None or facts.throttled < STOLEN:
        return None
    return Finding(
        cause="CPU quota",
        seen=f"the control group stops its threads {facts.throttled:.0%} of the time",
        remedy="raise the quota (cpu.max, docker --cpus), or give --threads no more than it allows",
        share=min(facts.throttled, 0.95),
    )


def numa_node(facts: Facts) -> Finding | None:
    """Threads on nodes from which no memory may be taken, or memory of one node read from several."""
    if len(facts.nodes) < 2 or not facts.cpu_nodes or not facts.memory_nodes:
        return None
    if facts.cpu_nodes == facts.memory_nodes & set(facts.nodes):
        return None
    threads, memory = (",".join(map(str, sorted(nodes))) for nodes in (facts.cpu_nodes, facts.memory_nodes))
    return Finding(
        cause="wrong NUMA node",
        seen=f"threads run on node {threads}, memory comes from node {memory}",
        remedy=f"numactl --cpunodebind={threads} --membind={threads} headrace ...",
    )


CHECKS: tuple[Callable[[Facts], Finding | None], ...] = (
    cpu_quota, stolen_time, throttling, slow_pace, single_channel, numa_node, smt_siblings, too_few_threads, unused_isa,
    huge_pages, pcie_width, pcie_speed,
)  # fmt: skip


def run(facts: Facts) -> list[Finding]:
    """Everything that was found; the largest known loss first, then causes of unknown loss."""
    found = [finding for check in CHECKS if (finding := check(facts)) is not None]
    return sorted(found, key=lambda f: -(f.share or 0.0))
