"""What memory is free, and the one check that is made before any is taken."""

from __future__ import annotations

from pathlib import Path

import psutil

from ..errors import MemoryNeeded

GB = 1e9
# Page tables, the allocator's slack and whatever else runs: not ours to fill.
RESERVE = 0.02


def free_memory() -> int:
    """Bytes that can be taken now without swapping: of the machine, or of the control group if that allows less."""
    available = int(psutil.virtual_memory().available)
    limit, used = (_cgroup(name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        available = min(available, max(0, limit - used + _reclaimable()))
    return available


def _reclaimable() -> int:
    """Bytes of file cache that are booked on this control group and given up when memory is asked for."""
    try:
        lines = Path("/sys/fs/cgroup/memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))


def _cgroup(name: str) -> int | None:
    """A number of this process's control group (version 2), or None where there is no limit."""
    try:
        text = Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def require_memory(needs: dict[str, int], remedy: str, free: int | None = None) -> None:
    """Raises MemoryNeeded, with every need in GB, if their sum is more than what is free less a small reserve."""
    free = free_memory() if free is None else free
    total = sum(needs.values())
    if total <= free * (1 - RESERVE):
        return
    parts = ", ".join(f"{name} {size / GB:.2f} GB" for name, size in needs.items() if size)
    raise MemoryNeeded(f"this needs {total / GB:.2f} GB of memory ({parts}), {free / GB:.2f} GB is free: {remedy}")
