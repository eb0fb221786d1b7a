"""Whether attention on a cache of bf16 multiplies bf16: measured once on this hardware, and kept.

Queries and weights are rounded to bf16 then, as GPUs do. CPUs differ in how much faster such products are than those of
float32, so both ways are timed in turns on a cache that no cache of the CPU holds, one new token a call, and bf16 is
taken where it wins by GAIN. The result decides on rounding: it is saved beside the machine's profile, and other
kernels than those that were timed are timed once more.
"""

from __future__ import annotations

import logging
import statistics
import time
from dataclasses import replace

import torch

from ...kernels import Ops, load
from ...kernels.context import Context
from ...loaders.memory import free_memory
from .. import writable
from ..bandwidth_model import profile as profiles
from ..devices.host import cpu_kernels
from .expert_times import keep, kept, path_of

log = logging.getLogger("headrace")
FILE = "attention"
HEADS, GROUPS, DIM, PAGE, TOKENS = 32, 4, 128, 32, 4096  # Qwen3-30B-A3B's, of one sequence
CALLS = 24  # sequences that lie in the arena: 200 MB
ROUNDS, GAIN = 30, 1.1


def use(context: Context, may_measure: bool = True) -> Context:
    """The context with the products of this hardware, which are timed if they were not yet; float32 where activations
    are not to be rounded, where the CPU has nothing else, and where that may not be timed or could not be kept:
    rounding must not differ from start to start."""
    if context.activations != "int8" or not context.has_bf16_attention:
        return replace(context, attention="float32")
    found = _saved(context)
    if found is None and may_measure:
        if error := writable.problem(path_of(FILE, context), with_folders=True):
            log.warning("attention not timed, because it could not be kept: %s; %s", error, profiles.ELSEWHERE)
        else:
            found = refresh(context)
    return replace(context, attention=found or "float32")


def refresh(context: Context) -> str:
    """Times both ways anew and keeps the choice."""
    if free_memory() < 4 * CALLS * _bytes():
        return "float32"  # a machine that is full now may be measured another day
    found = "bf16" if measure(context) >= GAIN else "float32"
    save(context, found)
    return found


def _bytes() -> int:
    """Of one sequence's cache."""
    return 2 * 2 * TOKENS * GROUPS * DIM


def measure(context: Context) -> float:
    """Median over rounds of the time with float32 over the time with bf16, of one token's attention; 0.1 s."""
    pages = CALLS * TOKENS // PAGE
    caches = [torch.full((pages, GROUPS, PAGE, DIM), 0.1, dtype=torch.bfloat16) for _ in "kv"]
    for cache in caches:
        cpu_kernels().advise_huge(cache)
    tables = torch.arange(pages, dtype=torch.int32).view(CALLS, 1, -1)
    exact, rounded = (load("cpu", replace(context, attention=name)) for name in ("float32", "bf16"))
    calls = iter(range(3 * ROUNDS))
    _seconds(exact, caches, tables[next(calls)])
    return statistics.median(
        _seconds(exact, caches, tables[next(calls) % CALLS]) / _seconds(rounded, caches, tables[next(calls) % CALLS])
        for _ in range(ROUNDS)
    )


def _seconds(ops: Ops, caches: list[torch.Tensor], table: torch.Tensor) -> float:
    q, (k, v) = torch.ones(1, HEADS, DIM), caches
    starts, contexts = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([TOKENS], dtype=torch.int32)
    start = time.perf_counter()
    ops.attention(q, k, v, table, starts, contexts, DIM**-0.5)
    return time.perf_counter() - start


def save(context: Context, found: str) -> None:
    """Keeps the choice for this hardware and these kernels."""
    keep(FILE, context, found)


def _saved(context: Context) -> str | None:
    choice = kept(FILE, context)
    return choice if choice in ("float32", "bf16") else None
