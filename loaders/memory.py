"""What memory is free, and the one check that is made before any is taken."""

from __future__ import annotations

from pathlib import Path

import psutil

from ..errors import MemoryNeeded
from ..kernels import limits

GB = 1e9
# Page tables, the allocator's slack and whatever else runs: not ours to fill.
RESERVE = 0.02


def free_memory(root: Path = limits.ROOT) -> int:
    """Bytes that can be taken now without swapping: of the machine, or less if a limit of this process says so."""
    available, left = int(psutil.virtual_memory().available), limits.memory_left(root)
    return available if left is None else min(available, left)


def all_memory(root: Path = limits.ROOT) -> int:
    """Bytes that this process may have in all: of the machine, or less if a limit says so."""
    total, limit = int(psutil.virtual_memory().total), limits.memory_limit(root)
    return total if limit is None else min(total, limit)


def require_memory(needs: dict[str, int], remedy: str, free: int | None = None) -> None:
    """Raises MemoryNeeded, with every need in GB, if their sum is more than what is free less a small reserve."""
    free = free_memory() if free is None else free
    total = sum(needs.values())
    if total <= free * (1 - RESERVE):
        return
    parts = ", ".join(f"{name} {size / GB:.2f} GB" for name, size in needs.items() if size)
    limit = limits.memory_limit()
    of = "" if limit is None else f", a limit of this process is {limit / GB:.2f} GB"
    raise MemoryNeeded(f"this needs {total / GB:.2f} GB of memory ({parts}), {free / GB:.2f} GB is free{of}: {remedy}")
