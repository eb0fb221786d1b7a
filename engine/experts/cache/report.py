"""What a cache of experts did, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ...policies.between import Resizable
from ...units import size
from ..disk.disk_cache import DiskCache
from .expert_cache import ExpertCache, budget_of
from .shared_memory import SharedRoom

Cache = ExpertCache | DiskCache


def at_start(cache: Cache) -> list[str]:
    """What it is, and why, a line each."""
    places, experts = cache.slots.count, sum(cache.shape.experts)
    when = (
        "at every layer"
        if isinstance(cache, DiskCache) or cache.late is None
        else "while the next step runs, which is a graph"
    )
    taken = f"{size(cache.slots.nbytes)} for {places} of {experts} experts"
    shared = [] if isinstance(cache, DiskCache) or cache.shared is None else [_shared(cache, cache.shared.room)]
    return [f"expert cache: policy {cache.policy.name}, {taken}; asked {when}", *shared, *cache.why]


def _shared(cache: ExpertCache, room: SharedRoom) -> str:
    if not isinstance(cache.policy, Resizable):
        return "expert cache: its size stays as it is, since its policy has no `resized`"
    least = budget_of(room, cache.shape, room.pages)
    return f"expert cache: up to {room.pages} pages of the KV cache take room from it when needed, {size(least)} stay"


def so_far(cache: Cache) -> str:
    """One line: what it did."""
    counts = cache.counts
    if not counts.choices:
        return f"expert cache, policy {cache.policy.name}: no token was generated"
    before = f" ({cache.switched})" if cache.switched else ""
    came = counts.fetched + counts.admitted + counts.prefetched
    late = f"; {cache.late_arrivals} were still on their way when they were chosen" if cache.late_arrivals else ""
    others = "were read for once" if isinstance(cache, DiskCache) else "went to the CPU"
    return (
        f"expert cache, policy {cache.policy.name}{before}: "
        f"{counts.hit_rate:.1%} of {counts.choices} choices were there, "
        f"{counts.on_cpu / counts.choices:.1%} {others}; {came} experts came ({size(counts.link_bytes)}), "
        f"{counts.evicted} left{late}"
    )


def as_json(cache: Cache) -> dict[str, Any]:
    """The same for programs; bytes, and counts of `policies/residents.py`."""
    counts = cache.counts
    return {
        "policy": cache.policy.name,
        **({"switched": cache.switched} if cache.switched else {}),
        "budget_bytes": cache.budget,
        "taken_bytes": cache.slots.nbytes,
        "resident": int((cache.slots.of_LE >= 0).sum()),
        "late_arrivals": cache.late_arrivals,
        "hit_rate": round(counts.hit_rate, 6),
        "choices": counts.choices,
        **asdict(counts),
    }
