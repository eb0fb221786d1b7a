"""A trace through a policy: what would have been resident, moved and computed where, and how long it would have taken.

It is the engine's own code that counts (`residents.py`). Time is that of the experts alone, by rates:

    layer = max(cpu bytes / cpu rate, fetched bytes / link rate + gpu bytes / gpu rate, store bytes / store rate,
                (cpu bytes + fetched bytes) / RAM rate)

where admitted and prefetched bytes come behind a layer and delay no one, as long as the link is not busier than the
pass is long: pass = max(sum of layers, link bytes / link rate, (cpu bytes + link bytes) / RAM rate). What the CPU reads
and what the link brings come out of the same RAM.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ....errors import OptionError
from ..protocol import Policy, Shape, Storing
from ..residents import Counts, Residents


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Bytes per second. cpu: of experts that the CPU computes; link: to the GPU; gpu: of experts that it computes;
    store: of those that a second GPU does, its memory's rate, or its link's if they are read over that (0: there is no
    second one); ram: what CPU and link can read together (0: they do not hold each other up). fixed_s: seconds of a
    pass besides. in_turn: the memories work one after another, as in an article's sum, and not at the same time."""

    cpu: float
    link: float
    gpu: float
    fixed_s: float = 0.0
    store: float = 0.0
    in_turn: bool = False
    ram: float = 0.0

    def of_layer(self, fetched: int, counts: Counts) -> float:
        """Seconds of a layer; fetched: bytes over the link before it."""
        stored = counts.store_bytes / self.store if counts.store_bytes else 0.0
        each = counts.cpu_bytes / self.cpu, fetched / self.link + counts.gpu_bytes / self.gpu, stored
        shared = (counts.cpu_bytes + fetched) / self.ram if self.ram else 0.0
        return sum(each) if self.in_turn else max(*each, shared)

    def of_pass(self, layers: float, cpu: int, link: int) -> float:
        """Seconds of a pass; layers: the sum of its layers, cpu and link: bytes that the CPU read and the link brought,
        at once or behind a layer."""
        shared = (cpu + link) / self.ram if self.ram else 0.0
        return max(layers, link / self.link, shared) + self.fixed_s

    def check(self, policy: Policy) -> None:
        """Raises OptionError where a policy uses a memory whose rate is not known."""
        if isinstance(policy, Storing) and policy.store_bytes and not self.store:
            raise OptionError(f"policy '{policy.name}' needs the rate of a second GPU: name two, as in 2x rtx-3090")


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
    out, OptionError where a second GPU's rate is not known."""
    if rates is not None:
        rates.check(policy)
    residents, total, seconds, number = Residents(policy, shape, budget), Counts(), 0.0, 0
    for number, chosen in enumerate(trace, 1):
        layers, link, before = 0.0, 0, total.cpu_bytes
        for layer, experts in enumerate(chosen):
            moves, counts = residents.layer(number - 1, layer, experts)
            total.add(counts)
            if rates is not None:
                fetched = len(moves.fetch) * shape.expert_bytes[layer]
                layers += rates.of_layer(fetched, counts)
                link += counts.link_bytes
        if rates is not None:
            seconds += rates.of_pass(layers, total.cpu_bytes - before, link)
    return Replayed(
        policy=policy.name, budget=budget, passes=number, tokens=tokens, counts=total,
        seconds=None if rates is None else seconds,
    )  # fmt: skip
