"""The whole profile of this machine: what its memory gives the kernels, and what a step costs besides."""

from __future__ import annotations

from dataclasses import asdict, replace

from ..bandwidth_model.profile import Profile, profile_path
from ..measure import kernel_rates, link_rates
from ..measure.other_load import Strangers
from . import overhead

QUICK_ARENA = 1 << 30  # bytes; twice what the caches of most machines hold, and not of all
QUICK_ROUNDS = 6


def measure(rounds: int = kernel_rates.ROUNDS, quick: bool = False) -> Profile:
    """Measures bandwidths, overheads, disk and copies; half a minute on a quiet machine, `quick` under 20 seconds.
    Raises MemoryNeeded."""
    others = Strangers()
    profile = kernel_rates.measure(QUICK_ROUNDS, QUICK_ARENA) if quick else kernel_rates.measure(rounds)
    costs = overhead.measure(rounds=overhead.ROUNDS // 2 if quick else overhead.ROUNDS)
    others_took = others.cores()  # before the disk, whose work the system does
    ways = link_rates.measure(profile_path(profile.key).parent, quick)
    return replace(profile, **asdict(costs), **asdict(ways), busy=others_took)
