"""The whole profile of this machine: what its memory gives the kernels, and what a step costs besides."""

from __future__ import annotations

from dataclasses import asdict, replace

from . import machine, overhead
from .profile import Profile

QUICK_ARENA = 1 << 30  # bytes; twice what the caches of most machines hold, and not of all


def measure(rounds: int = 3, quick: bool = False) -> Profile:
    """Measures bandwidths, then overheads; under half a minute, `quick` under 20 seconds. Raises MemoryNeeded."""
    profile = machine.measure(1, QUICK_ARENA) if quick else machine.measure(rounds)
    return replace(profile, **asdict(overhead.measure()))
