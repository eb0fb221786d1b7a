"""A trace through a policy: what would have been resident, moved and computed where, and how long it would have taken.

It is the engine's own code that counts (`residents.py`). Time is that of the experts alone, by rates:

    layer = max(cpu bytes / cpu rate, fetched bytes / link rate + gpu bytes / gpu rate)

where admitted and prefetched bytes come behind a layer and delay no one, as long as the link is not busier than the
pass is long: pass = max(sum of layers, link bytes / link rate).

Where passes are graphs on a GPU nothing comes while one runs: its layers find what the passes before the last one left
(`late`), and the policy is asked about a pass while the next one runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..protocol import Policy, Shape
from ..residents import Counts, Residents

Passes = Iterable[Sequence[tuple[int, ...]]]  # by pass and layer the experts that were chosen, each once


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
    policy: Policy, shape: Shape, budget: int, trace: Passes,
    *, tokens: int, rates: Rates | None = None, late: bool = False,
) -> Replayed:  # fmt: skip
    """Runs the passes of a trace; tokens: how many they have. Raises PolicyError where an answer cannot be carried
    out."""
    residents, total, seconds, passes = Residents(policy, shape, budget), Counts(), 0.0, 0
    for layers, behind in (_late if late else _at_once)(residents, trace):
        passes += 1
        busy, link = 0.0, behind.link_bytes
        total.add(behind)
        for counts, size in zip(layers, shape.expert_bytes, strict=True):
            total.add(counts)
            if rates is not None:
                here = counts.fetched * size / rates.link + counts.gpu_bytes / rates.gpu
                busy += max(counts.cpu_bytes / rates.cpu, here)
                link += counts.link_bytes
        if rates is not None:
            seconds += max(busy, link / rates.link) + rates.fixed_s
    return Replayed(
        policy=policy.name, budget=budget, passes=passes, tokens=tokens, counts=total,
        seconds=None if rates is None else seconds,
    )  # fmt: skip


def _at_once(residents: Residents, trace: Passes) -> Iterator[tuple[list[Counts], Counts]]:
    """Of each pass what its layers did, and what came behind it: nothing."""
    for step, chosen in enumerate(trace):
        yield [residents.layer(step, layer, experts)[1] for layer, experts in enumerate(chosen)], Counts()


def _late(residents: Residents, trace: Passes) -> Iterator[tuple[list[Counts], Counts]]:
    """The same where the policy is asked about the pass before when a pass was counted."""
    before: Sequence[tuple[int, ...]] = ()
    for step, chosen in enumerate(trace):
        found, behind = [residents.count(layer, experts) for layer, experts in enumerate(chosen)], Counts()
        for layer, experts in enumerate(before):
            behind.add(residents.answer(step - 1, layer, experts)[1])
        yield found, behind
        before = chosen
