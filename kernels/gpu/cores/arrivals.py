"""Which program of several comes last, so that it can finish what all have made, without a launch of its own.

A counter stands at 0 between launches: the last to arrive puts it back. Who arrives last differs from run to run, what
it computes does not. One launch after another uses the counters of a stream; launches of two streams may overlap.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import launch

LEAST = 4096  # counters at a time

_kept: dict[tuple[torch.device, int, str], list[Tensor]] = {}


@triton.jit
def is_last(counter_ptr, expected):
    """Whether all others of `expected` programs have arrived; what they wrote before is then there to be read (from the
    second cache: `.cg`)."""
    tl.debug_barrier()  # all threads have written before one of them says so
    last = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") == expected - 1
    if last:
        tl.store(counter_ptr, 0)
    return last


def counters(device: torch.device, use: str, count: int) -> Tensor:
    """At least `count` counters, int32, for one use in the current stream: the same memory at every call that asks for
    no more of them. Graphs keep its address, so what was made once is never given back. Made at a first call, which a
    graph's capture in the same stream comes after: what a capture makes is not 0 before that graph runs."""
    made = _kept.setdefault((device, launch.stream(device), use), [])
    if not made or len(made[-1]) < count:
        assert not launch.is_captured(device), f"{use} is captured in a stream in which it has not run"
        made.append(torch.zeros(launch.pow2(count, LEAST), dtype=launch.I32, device=device))
    return made[-1]
