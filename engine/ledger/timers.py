"""How long each tier was at work in a pass, and what the GPU stood still for: spans of streams, and clocks of the CPU.

    main stream    | d2h | gpu_hbm ......... | wait cpu_dram ... | h2d | gpu_hbm | ...     stamps where the bars are
    CPU                | cpu_dram ....................... |                              its own clock
    side stream    | - | h2d ... | - | h2d ... |                                           copies, where there are any

A span says what a stream did since its stamp before: a tier's name, `wait(tier)`, or None for what belongs to nobody.
The stamps of a device are read when the pass is over, so that nothing waits for them. Of what a pass took:

    time of all tiers - overlap + idle + outside = measured

    overlap   of each tier beside the main stream: its work, less the time in which the main stream waited for it
    idle      where that is below 0, waiting in which nobody worked: what handing over cost
    outside   what no span of the main stream is about: scheduling, Python around the pass
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..devices.streams import Stamps
from .passes import CPU_DRAM, Times, add_up

WAIT = "wait "  # before the tier that is waited for


def wait(tier: str) -> str:
    """The name of a span in which a stream stood still for a tier."""
    return WAIT + tier


class Spans:
    """What a stream does, from stamp to stamp, between `begin` and `take`; outside of them `span` does nothing."""

    def __init__(self, stream: Stamps) -> None:
        self.stream = stream
        self.taken: list[tuple[str | None, Any]] = []

    def begin(self) -> None:
        self.taken = [(None, self.stream.stamp())]

    def span(self, what: str | None) -> None:
        """What the stream does from the stamp before up to here was this."""
        if self.taken:
            self.taken.append((what, self.stream.stamp()))

    def read(self) -> dict[str, float]:
        """Seconds by what was done; the work must be over. A captured step is read after each replay."""
        sums: defaultdict[str, float] = defaultdict(float)
        for (_, before), (what, now) in zip(self.taken, self.taken[1:], strict=False):
            if what is not None:
                sums[what] += self.stream.seconds(before, now)
        return dict(sums)

    def take(self) -> dict[str, float]:
        """Reads the spans, and ends them."""
        found, taken, self.taken = self.read(), self.taken, []
        self.stream.give_back(stamp for _, stamp in taken)
        return found


class Timers:
    """The times of one model's passes, one at a time. `main` is the stream of the device that has everything but the
    experts; None: the CPU alone, of which only `spend` says something.

    is_on: whether streams are stamped. Each stamp costs a launch on a GPU; the CPU's clock is always on.
    """

    def __init__(self, main: Stamps | None = None) -> None:
        self.main = None if main is None else Spans(main)
        self.others: list[Spans] = []
        self.is_on = False
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.captured: Spans | None = None

    def beside(self, stream: Stamps) -> Spans:
        """The spans of another stream, whose work is beside that of the main one; of the main stream itself, its
        own."""
        if self.main is not None and stream == self.main.stream:
            return self.main
        self.others.append(Spans(stream))
        return self.others[-1]

    def begin(self) -> None:
        """A pass begins; one that an error ended is forgotten."""
        self.spent.clear()
        self.captured = None
        if self.is_on and self.main is not None:
            for spans in (self.main, *self.others):
                spans.begin()

    def span(self, what: str | None) -> None:
        """A span of the main stream."""
        if self.main is not None:
            self.main.span(what)

    def spend(self, tier: str, seconds: float) -> None:
        """Time that a tier worked, by a clock of the host: beside the main stream, or with it waiting."""
        self.spent[tier] += seconds

    @contextmanager
    def on_cpu(self) -> Iterator[None]:
        """What is done here is the CPU's, and the main stream waits for it."""
        self.span(None)
        start = time.perf_counter()
        yield
        self.spend(CPU_DRAM, time.perf_counter() - start)
        self.span(wait(CPU_DRAM))

    def add(self, captured: Spans) -> None:
        """The spans of a captured step, which the main stream ran."""
        self.captured = captured

    def end(self, seconds: float) -> Times:
        """The times of a pass that took so long; all its work is done."""
        if self.main is None:
            work = sum(self.spent.values())
            return Times(busy=dict(self.spent), waits={}, overlap_s=0.0, idle_s=0.0, outside_s=seconds - work)
        if not self.main.taken:
            return Times(busy=dict(self.spent), waits={}, overlap_s=None, idle_s=None, outside_s=None)
        spans = add_up([self.main.take(), self.captured.read() if self.captured is not None else {}])
        waits = {name.removeprefix(WAIT): s for name, s in spans.items() if name.startswith(WAIT)}
        done = {name: s for name, s in spans.items() if not name.startswith(WAIT)}
        beside = add_up([self.spent, *(other.take() for other in self.others)])
        gained = [beside.get(tier, 0.0) - waits.get(tier, 0.0) for tier in {*beside, *waits}]
        return Times(
            busy=add_up([done, beside]),
            waits=waits,
            overlap_s=sum(max(0.0, one) for one in gained),
            idle_s=sum(max(0.0, -one) for one in gained),
            outside_s=seconds - sum(spans.values()),
        )
