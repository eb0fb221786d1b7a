"""What is not an op: pages of memory, and what this machine can do at best."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from .. import _cpu
from ..context import Context
from .prepare import U8, at

PEAKS: dict[str, int] = _cpu.PEAKS  # of `peak_rate`, by name
EXPERT_OUT_BYTES: int = _cpu.EXPERT_OUT_BYTES  # that `experts` takes for its products; more tokens go in chunks
MADE_BYTES: int = _cpu.MADE_BYTES  # that keys and values made of latents take: as many heads as fit, one at least


def advise_huge(tensor: Tensor) -> bool:
    """Asks for huge pages under a tensor, best before its first write; False where the kernel will not give any."""
    mode = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not mode.exists() or "[never]" in mode.read_text():
        return False
    return bool(_cpu.advise_huge(tensor.data_ptr(), tensor.nbytes))


def numa_nodes(root: str = "/sys/devices/system/node") -> list[int]:
    """The nodes of memory beside the CPUs that this process may use; none where the system does not tell."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    return [node for node, cpus in enumerate(_cpu.node_cpus(root)) if mine & set(cpus)]


def interleave(tensor: Tensor, nodes: list[int]) -> bool:
    """Asks for the pages of a tensor, not yet written, in turns from these nodes; False where the system will not."""
    return bool(_cpu.interleave(tensor.data_ptr(), tensor.nbytes, nodes))


def stream_read(context: Context, data: Tensor) -> float:
    """Seconds in which the team reads a uint8 tensor once: the ceiling that a kernel's bandwidth is held against."""
    return float(_cpu.stream_read(context.native, at(data, U8, *data.shape), data.numel()))


def peak_rate(context: Context, kind: str) -> float:
    """Operations a second of the team on registers alone, of one of PEAKS. 0: the ISA has none."""
    return float(_cpu.peak_rate(context.native, PEAKS[kind]))


def region_ns(context: Context, rounds: int = 10000) -> float:
    """Nanoseconds from the start of an empty parallel region to its end, workers awake."""
    return float(_cpu.region_ns(context.native, rounds))


def barrier_ns(context: Context, rounds: int = 10000) -> float:
    """Nanoseconds of one barrier inside a parallel region."""
    return float(_cpu.barrier_ns(context.native, rounds))


class TeamSleeps(NamedTuple):
    """How often workers of a team went to sleep because nothing came, and though work was expected, because others use
    their core; how many regions had to wake any, and how many sleep now."""

    slept: int
    gave_way: int
    woken: int
    asleep: int


def team_sleeps(context: Context) -> TeamSleeps:
    """Counts of the team of so many threads since it was started."""
    return TeamSleeps(*_cpu.team_sleeps(context.native))


@contextmanager
def expect_work(seconds: float) -> Iterator[None]:
    """Meanwhile idle workers spin for so long before they sleep, as in a step of a `Mailbox`."""
    expected = _cpu.ExpectWork(seconds)
    try:
        yield
    finally:
        del expected


def take_part_seconds() -> dict[str, float]:
    """Seconds that each part of `layers` took since this was last asked, in any context: norms, qkv, attention,
    experts and so on; `experts` called by itself counts too."""
    return dict(_cpu.take_part_seconds())
