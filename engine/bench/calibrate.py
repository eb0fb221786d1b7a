"""The whole profile of this machine: what its memory gives the kernels, and what a step costs besides."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, replace

from ...errors import OptionError
from ...kernels import FORMATS
from ...kernels.context import Context
from ..bandwidth_model.profile import Profile, profile_path
from ..measure import attention_products, kernel_rates, link_rates
from ..measure.other_load import Strangers
from . import overhead

QUICK_ARENA = 1 << 30  # bytes; twice what the caches of most machines hold, and not of all
QUICK_ROUNDS = 6


def named(text: str) -> list[str]:
    """Formats by their names, separated by commas, or all; raises OptionError for one that there is not."""
    names = [word.strip().lower() for word in text.split(",") if word.strip()]
    if names == ["all"]:
        return list(FORMATS)
    if unknown := [name for name in names if name not in FORMATS]:
        raise OptionError(f"--formats has no '{unknown[0]}'; there are all, {', '.join(FORMATS)}")
    return names


def add(known: Profile, context: Context, formats: Collection[str]) -> Profile:
    """A profile with the rates of more formats, which are measured now: a second each. Raises MemoryNeeded."""
    more = kernel_rates.measure_formats(context, formats)
    return replace(known.with_formats(more), busy=more.busy)


def measure(
    context: Context, rounds: int = kernel_rates.ROUNDS, quick: bool = False, more: Collection[str] = ()
) -> Profile:
    """Measures bandwidths, overheads, disk and copies in this context; half a minute on a quiet machine, `quick` under
    20 seconds. more: formats besides the usual ones. Raises MemoryNeeded."""
    others = Strangers()
    context = attention_products.use(context)
    if quick:
        profile = kernel_rates.measure(context, QUICK_ROUNDS, QUICK_ARENA, more)
    else:
        profile = kernel_rates.measure(context, rounds, None, more)
    costs = overhead.measure(context, rounds=overhead.ROUNDS // 2 if quick else overhead.ROUNDS)
    others_took = others.cores()  # before the disk, whose work the system does
    ways = link_rates.measure(context, profile_path(profile.key).parent, quick)
    return replace(profile, **asdict(costs), **asdict(ways), busy=others_took)
