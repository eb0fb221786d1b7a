"""A trace through a policy: what would have been resident, moved and computed where, and how long it would have taken.

It is the engine's own code that counts (`residents.py`). Time is that of the experts alone, by rates:

    layer = max(cpu bytes / cpu rate, fetched bytes / link rate + gpu bytes / gpu rate)

where admitted and prefetched bytes come behind a layer and delay no one, as long as the link is not busier than the
pass is long: pass = max(sum of layers, link bytes / link rate).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..protocol import Policy, Shape
from ..residents import Counts, Residents


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Bytes per second: of experts that the CPU computes, over the link, of experts that the GPU computes; seconds of
    a pass besides (`fixed_s`)."""

    cpu: float
    link: float
    gpu: float
    fixed_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What a policy did with a trace. seconds: by the rates; None without."""

    policy: str
    budget: int
    passes: int
    tokens: int
    counts: Counts
    seconds: float | None

    @property
    def tokens_per_s(self) -> float | None:
        return self.tokens / self.seconds if self.seconds else None


def replay(
    policy: Policy, shape: Shape, budget: int, trace: Iterable[Sequence[tuple[int, ...]]],
    *, tokens: int, rates: Rates | None = None,
) -> Replayed:  # fmt: skip
    """Runs the passes of a trace; tokens: how many they have. Raises PolicyError where an answer cannot be carried
    out."""
    residents, total, seconds, number = Residents(policy, shape, budget), Counts(), 0.0, 0
    for number, chosen in enumerate(trace, 1):
        layers, link = 0.0, 0
        for layer, experts in enumerate(chosen):
            moves, counts = residents.layer(number - 1, layer, experts)
            total.add(counts)
            if rates is not None:
                fetched = len(moves.fetch) * shape.expert_bytes[layer]
                layers += max(counts.cpu_bytes / rates.cpu, fetched / rates.link + counts.gpu_bytes / rates.gpu)
                link += counts.link_bytes
        if rates is not None:
            seconds += max(layers, link / rates.link) + rates.fixed_s
    return Replayed(
        policy=policy.name, budget=budget, passes=number, tokens=tokens, counts=total,
        seconds=None if rates is None else seconds,
    )  # fmt: skip
