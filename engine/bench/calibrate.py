"""The whole profile of this machine: what its memory gives the kernels, and what a step costs besides."""

from __future__ import annotations

from dataclasses import asdict, replace

from ...kernels.context import Context
from ..bandwidth_model.profile import Profile, profile_path
from ..measure import kernel_rates, link_rates
from ..measure.other_load import Strangers
from . import overhead

QUICK_ARENA = 1 << 30  # bytes; twice what the caches of most machines hold, and not of all
QUICK_ROUNDS = 6


def measure(context: Context, rounds: int = kernel_rates.ROUNDS, quick: bool = False) -> Profile:
    """Measures bandwidths, overheads, disk and copies in this context; half a minute on a quiet machine, `quick` under
    20 seconds. Raises MemoryNeeded."""
    others = Strangers()
    if quick:
        profile = kernel_rates.measure(context, QUICK_ROUNDS, QUICK_ARENA)
    else:
        profile = kernel_rates.measure(context, rounds)
    costs = overhead.measure(context, rounds=overhead.ROUNDS // 2 if quick else overhead.ROUNDS)
    others_took = others.cores()  # before the disk, whose work the system does
    ways = link_rates.measure(context, profile_path(profile.key).parent, quick)
    return replace(profile, **asdict(costs), **asdict(ways), busy=others_took)
