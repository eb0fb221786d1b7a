"""Whether asking for weights ahead of what is read helps: measured once on this hardware, and kept.

On some CPUs it is what makes one token's experts read at the speed of memory, on others the CPU's own prefetchers do
that and the requests are in their way. Both ways are timed in turns on experts that no cache holds. No result depends
on it, so a machine where nothing can be kept goes by what is known of its kind.
"""

from __future__ import annotations

import statistics
from dataclasses import replace

import torch

from ...kernels import FORMATS, ExpertLayout, load
from ...kernels.context import Context
from ...kernels.packed import ExpertBank
from ...loaders.memory import free_memory
from .. import writable
from ..devices.host import cpu_kernels
from .expert_times import EXPERTS, keep, kept, path_of, seconds_of
from .kernel_rates import HIDDEN, WIDTH

FILE = "prefetch"
FORMAT = "q4_0"  # the most arithmetic beside each byte, so what prefetching gains or costs shows most
ARENA = 192 << 20
ROUNDS = 40


def use(context: Context, may_measure: bool = True) -> Context:
    """The context with the choice of this hardware, which is measured if it was not yet and can be kept."""
    found = _saved(context)
    if found is None and may_measure and not writable.problem(path_of(FILE, context), with_folders=True):
        found = refresh(context)
    return context if found is None else replace(context, prefetch=found)


def refresh(context: Context) -> bool:
    """Measures the choice anew and keeps it."""
    if free_memory() < 4 * ARENA:
        return context.prefetch  # a machine that is full now may be measured another day
    found = measure(context) > 1.0
    save(context, found)
    return found


def measure(context: Context) -> float:
    """Median over rounds of the time without requests over the time with them, of one token's experts; 0.3 s."""
    layout = ExpertLayout(format=FORMATS[FORMAT], hidden=HIDDEN, width=WIDTH)
    arena = torch.full((ARENA // layout.bytes, layout.bytes), 0x11, dtype=torch.uint8)
    cpu_kernels().advise_huge(arena)
    bank = ExpertBank(layout, arena)
    without, ahead = (load("cpu", replace(context, prefetch=on)) for on in (False, True))
    firsts = iter(range(0, 3 * ROUNDS * EXPERTS, EXPERTS))
    seconds_of(without, bank, next(firsts), 1)
    ratios = [
        seconds_of(without, bank, next(firsts), 1) / seconds_of(ahead, bank, next(firsts), 1) for _ in range(ROUNDS)
    ]
    return statistics.median(ratios)


def save(context: Context, found: bool) -> None:
    """Keeps the choice for this hardware and these kernels."""
    keep(FILE, context, found)


def _saved(context: Context) -> bool | None:
    choice = kept(FILE, context)
    return choice if isinstance(choice, bool) else None
