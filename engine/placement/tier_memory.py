"""What every memory holds, and how much of it may be taken: one account for plans and for runs.

a GPU              all but a reserve: the driver's context, kernels, whatever else takes some of it
RAM, installed     a share: the rest is for the system and everything else that runs (a plan knows no more)
RAM, free now      all but a small share, which is not ours to fill (a run)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...loaders.memory import RESERVE

GPU_RESERVE = int(1.0e9)
RAM_SHARE = 0.95


def of_gpu(memory: int) -> int:
    """Bytes of a GPU's memory (all of it, or what is free) that may be taken."""
    return max(0, memory - GPU_RESERVE)


def of_installed(ram: int) -> int:
    """Bytes of a machine's RAM that may be taken."""
    return int(ram * RAM_SHARE)


def of_free(ram: int) -> float:
    """Bytes of the RAM that is free now that may be taken."""
    return ram * (1 - RESERVE)


@dataclass(frozen=True, kw_only=True)
class TierMemory:
    """One memory: bytes by what they are for, and how many may be taken (None: not said)."""

    needed: dict[str, int]
    available: float | None

    @property
    def total(self) -> int:
        return sum(self.needed.values())

    @property
    def fits(self) -> bool:
        return self.available is None or self.total <= self.available

    @property
    def missing(self) -> float:
        return 0 if self.available is None else max(0, self.total - self.available)


def of_needs(needs: dict[str, int], available: float | None) -> TierMemory:
    """A memory that holds these; what takes nothing is left out."""
    return TierMemory(needed={what: size for what, size in needs.items() if size}, available=available)


def together(memories: Iterable[TierMemory], available: float | None) -> TierMemory:
    """Memories that are one."""
    sums: dict[str, int] = {}
    for memory in memories:
        for what, size in memory.needed.items():
            sums[what] = sums.get(what, 0) + size
    return TierMemory(needed=sums, available=available)
