"""A trace through a policy: what would have been resident, moved and computed where, and how long it would have taken.

It is the engine's own code that counts (`residents.py`). Time is that of the experts alone, by rates:

    layer = max(cpu bytes / cpu rate, fetched bytes / link rate + gpu bytes / gpu rate, store bytes / store rate,
                (cpu bytes + fetched bytes) / RAM rate)

where admitted and prefetched bytes come behind a layer and delay no one, as long as the link is not busier than the
pass is long: pass = max(sum of layers, link bytes / link rate, (cpu bytes + link bytes) / RAM rate). What the CPU reads
and what the link brings come out of the same RAM.

Where passes are graphs on a GPU nothing comes while one runs: its layers find what the passes before the last one left
(`late`), and the policy is asked about a pass while the next one runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ....errors import OptionError
from ..between import Event, take_in
from ..protocol import Policy, Shape, Storing
from ..residents import Counts, Residents

Events = Mapping[int, Sequence[Event]]  # by pass what happened before it
NO_EVENTS: Events = MappingProxyType({})
Passes = Iterable[Sequence[tuple[int, ...]]]  # by pass and layer the experts that were chosen, each once


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
    policy: Policy, shape: Shape, budget: int, trace: Passes,
    *, tokens: int, rates: Rates | None = None, late: bool = False, events: Events = NO_EVENTS,
) -> Replayed:  # fmt: skip
    """Runs the passes of a trace; tokens: how many they have. events: what happened before which pass. Raises
    PolicyError where an answer cannot be carried out, OptionError where a second GPU's rate is not known."""
    if rates is not None:
        rates.check(policy)
    residents, total, seconds, passes = Residents(policy, shape, budget), Counts(), 0.0, 0
    for layers, behind in (_late if late else _at_once)(residents, trace, events):
        passes += 1
        busy, link, before = 0.0, behind.link_bytes, total.cpu_bytes
        total.add(behind)
        for counts, size in zip(layers, shape.expert_bytes, strict=True):
            total.add(counts)
            if rates is not None:
                busy += rates.of_layer(counts.fetched * size, counts)
                link += counts.link_bytes
        if rates is not None:
            seconds += rates.of_pass(busy, total.cpu_bytes - before, link)
    return Replayed(
        policy=policy.name, budget=budget, passes=passes, tokens=tokens, counts=total,
        seconds=None if rates is None else seconds,
    )  # fmt: skip


def _at_once(residents: Residents, trace: Passes, events: Events) -> Iterator[tuple[list[Counts], Counts]]:
    """Of each pass what its layers did, and what came before or behind it."""
    for step, chosen in enumerate(trace):
        before = _before(residents, step, events)
        yield [residents.layer(step, layer, experts)[1] for layer, experts in enumerate(chosen)], before


def _before(residents: Residents, step: int, events: Events) -> Counts:
    """What comes of the events before a pass."""
    found = Counts()
    for event in events.get(step, ()):
        found.add(take_in(residents, step, event)[1])
    return found


def _late(residents: Residents, trace: Passes, events: Events) -> Iterator[tuple[list[Counts], Counts]]:
    """The same where the policy is asked about the pass before when a pass was counted."""
    before: Sequence[tuple[int, ...]] = ()
    for step, chosen in enumerate(trace):
        behind = _before(residents, step, events)
        found = [residents.count(layer, experts) for layer, experts in enumerate(chosen)]
        for layer, experts in enumerate(before):
            behind.add(residents.answer(step - 1, layer, experts)[1])
        yield found, behind
        before = chosen
