"""The C++ kernels: the ops of an engine (`backend.py`), its hand-off to a GPU (`mailbox.py`), and what is not an op
(`host.py`). How they compute says a `Context`; there is no setting of the process.

The folders are the C++, each with one idea:

    isa/        vectors of each instruction set, and the table of what it offers
    formats/    rows of weights and activations as they lie in memory
    cores/      one row, one tile, one item of attention: dot products, tiles, softmax
    dispatch/   fills the tables, asks the CPU, the context
    ops/        rows, tokens and experts dealt out to threads
    runtime/    teams of threads, nodes of memory, the mailbox, clocks
    bind/       the extension's face
"""

from __future__ import annotations

from ..context import Context
from ..isa import available_isas, cpu_features
from .backend import CpuOps
from .host import (
    EXPERT_OUT_BYTES,
    MADE_BYTES,
    PEAKS,
    TeamSleeps,
    advise_huge,
    barrier_ns,
    expect_work,
    interleave,
    numa_nodes,
    peak_rate,
    region_ns,
    stream_read,
    take_part_seconds,
    team_sleeps,
)

__all__ = [
    "EXPERT_OUT_BYTES",
    "MADE_BYTES",
    "PEAKS",
    "Context",
    "CpuOps",
    "TeamSleeps",
    "advise_huge",
    "available_isas",
    "barrier_ns",
    "cpu_features",
    "expect_work",
    "interleave",
    "numa_nodes",
    "peak_rate",
    "region_ns",
    "stream_read",
    "take_part_seconds",
    "team_sleeps",
]
