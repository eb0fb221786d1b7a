"""Which program of several comes last, so that it can finish what all have made, without a launch of its own.

A counter stands at 0 between launches: the last to arrive puts it back. Who arrives last differs from run to run, what
it computes does not. One launch after another uses the counters of a device, so none may overlap with the next.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import launch

LEAST = 4096  # counters at a time

_kept: dict[tuple[torch.device, str], Tensor] = {}


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
    """At least `count` counters, int32, for one use: the same memory at every call, since graphs keep its address. Made
    at a first call, which a graph's capture comes after."""
    found = _kept.get((device, use))
    if found is None or len(found) < count:
        found = _kept[device, use] = torch.zeros(launch.pow2(count, LEAST), dtype=launch.I32, device=device)
    return found
