"""How far ahead weights are asked for: measured once on this hardware, and kept.

On some CPUs it is what makes one token's weights read at the speed of memory, on others the CPU's own prefetchers do
that for rows of some lengths and fail at others. Every choice is timed in turns on experts that no cache holds, in the
format with the most arithmetic beside each byte and in the one with the least, with rows of a power of two and with
others. No result depends on it, so a machine where nothing can be kept goes by what is known of its kind.
"""

from __future__ import annotations

import statistics
from dataclasses import replace

import torch

from ...kernels import FORMATS, ExpertLayout, load
from ...kernels.context import BOTH_PREFETCH, NEAR_PREFETCH, NO_PREFETCH, Context
from ...kernels.packed import ExpertBank
from ...loaders.memory import free_memory
from .. import writable
from ..devices.host import cpu_kernels
from .expert_times import EXPERTS, keep, kept, path_of, seconds_of

FILE = "prefetch"
CHOICES = (NO_PREFETCH, NEAR_PREFETCH, BOTH_PREFETCH)
SHAPES = (("q4_0", 2048, 1024), ("q8_0", 2880, 1024))  # format, hidden, width of experts
ARENA = 192 << 20
ROUNDS = 24


def use(context: Context, may_measure: bool = True) -> Context:
    """The context with the choice of this hardware, which is measured if it was not yet and can be kept."""
    found = _saved(context)
    if found is None and may_measure and not writable.problem(path_of(FILE, context), with_folders=True):
        found = refresh(context)
    return context if found is None else replace(context, prefetch=found)


def refresh(context: Context) -> tuple[int, int]:
    """Measures the choice anew and keeps it."""
    if free_memory() < 4 * ARENA:
        return context.prefetch  # a machine that is full now may be measured another day
    times = measure(context)
    found = min(CHOICES, key=lambda choice: times[choice])  # of equal ones the first, which asks for least
    save(context, found)
    return found


def measure(context: Context) -> dict[tuple[int, int], float]:
    """What one token's experts take with each of CHOICES over what they take without: the product over SHAPES of
    medians; about a second."""
    arena = torch.full((ARENA,), 0x11, dtype=torch.uint8)
    cpu_kernels().advise_huge(arena)
    found = dict.fromkeys(CHOICES, 1.0)
    for format, hidden, width in SHAPES:
        layout = ExpertLayout(format=FORMATS[format], hidden=hidden, width=width)
        count = ARENA // layout.bytes
        bank = ExpertBank(layout, arena[: count * layout.bytes].view(count, layout.bytes))
        for choice, ratio in _ratios(context, bank).items():
            found[choice] *= ratio
    return found


def _ratios(context: Context, bank: ExpertBank) -> dict[tuple[int, int], float]:
    """By choice: the median time of a call over that without prefetch, all in turns."""
    ops = {choice: load("cpu", replace(context, prefetch=choice)) for choice in CHOICES}
    firsts = iter(range(0, (ROUNDS + 1) * len(CHOICES) * EXPERTS, EXPERTS))

    def one_round() -> dict[tuple[int, int], float]:
        return {choice: seconds_of(ops[choice], bank, next(firsts), 1) for choice in CHOICES}

    one_round()
    rounds = [one_round() for _ in range(ROUNDS)]
    return {choice: statistics.median(times[choice] / times[NO_PREFETCH] for times in rounds) for choice in CHOICES}


def save(context: Context, found: tuple[int, int]) -> None:
    """Keeps the choice for this hardware and these kernels."""
    keep(FILE, context, found)


def _saved(context: Context) -> tuple[int, int] | None:
    found = kept(FILE, context)
    return next((choice for choice in CHOICES if list(choice) == found), None)
