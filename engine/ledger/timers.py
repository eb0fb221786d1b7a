"""How long each tier was at work in a pass, and what the GPU stood still for: laps of lanes, and clocks of the CPU.

    main lane    | d2h | gpu_hbm ......... | wait cpu_dram ... | h2d | gpu_hbm | ...     stamps where the bars are
    CPU                | cpu_dram ....................... |                              its own clock
    side lane    | - | h2d ... | - | h2d ... |                                           copies, where there are any

A lap says what a lane did since its stamp before: a tier's name, `wait(tier)`, or None for what belongs to nobody. The
stamps of a device are read when the pass is over, so that nothing waits for them. Of what a pass took:

    time of all tiers - overlap + idle + outside = measured

    overlap   of each tier beside the main lane: its work, less the time in which the main lane waited for it
    idle      where that is below 0, waiting in which nobody worked: what handing over cost
    outside   what no lap of the main lane is about: scheduling, Python around the pass
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
    """The name of a lap in which a lane stood still for a tier."""
    return WAIT + tier


class Laps:
    """What a lane does, from stamp to stamp, between `begin` and `take`; outside of them `lap` does nothing."""

    def __init__(self, lane: Stamps) -> None:
        self.lane = lane
        self.taken: list[tuple[str | None, Any]] = []

    def begin(self) -> None:
        self.taken = [(None, self.lane.stamp())]

    def lap(self, what: str | None) -> None:
        """What the lane does from the stamp before up to here was this."""
        if self.taken:
            self.taken.append((what, self.lane.stamp()))

    def read(self) -> dict[str, float]:
        """Seconds by what was done; the work must be over. A captured step is read after each replay."""
        sums: defaultdict[str, float] = defaultdict(float)
        for (_, before), (what, now) in zip(self.taken, self.taken[1:], strict=False):
            if what is not None:
                sums[what] += self.lane.seconds(before, now)
        return dict(sums)

    def take(self) -> dict[str, float]:
        """Reads the laps, and ends them."""
        found, taken, self.taken = self.read(), self.taken, []
        self.lane.give_back(stamp for _, stamp in taken)
        return found


class Clock:
    """The times of one model's passes, one at a time. `main` is the lane of the device that has everything but the
    experts; None: the CPU alone, of which only `spend` says something.

    is_on: whether lanes are stamped. Each stamp costs a launch on a GPU; the CPU's clock is always on.
    """

    def __init__(self, main: Stamps | None = None) -> None:
        self.main = None if main is None else Laps(main)
        self.others: list[Laps] = []
        self.is_on = False
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.captured: Laps | None = None

    def beside(self, lane: Stamps) -> Laps:
        """The laps of another lane, whose work is beside that of the main one; of the main lane itself, its own."""
        if self.main is not None and lane == self.main.lane:
            return self.main
        self.others.append(Laps(lane))
        return self.others[-1]

    def begin(self) -> None:
        """A pass begins; one that an error ended is forgotten."""
        self.spent.clear()
        self.captured = None
        if self.is_on and self.main is not None:
            for laps in (self.main, *self.others):
                laps.begin()

    def lap(self, what: str | None) -> None:
        """A lap of the main lane."""
        if self.main is not None:
            self.main.lap(what)

    def spend(self, tier: str, seconds: float) -> None:
        """Time that a tier worked, by a clock of the host: beside the main lane, or with it waiting."""
        self.spent[tier] += seconds

    @contextmanager
    def on_cpu(self) -> Iterator[None]:
        """What is done here is the CPU's, and the main lane waits for it."""
        self.lap(None)
        start = time.perf_counter()
        yield
        self.spend(CPU_DRAM, time.perf_counter() - start)
        self.lap(wait(CPU_DRAM))

    def add(self, captured: Laps) -> None:
        """The laps of a captured step, which the main lane ran."""
        self.captured = captured

    def end(self, seconds: float) -> Times:
        """The times of a pass that took so long; all its work is done."""
        if self.main is None:
            work = sum(self.spent.values())
            return Times(busy=dict(self.spent), waits={}, overlap_s=0.0, idle_s=0.0, outside_s=seconds - work)
        if not self.main.taken:
            return Times(busy=dict(self.spent), waits={}, overlap_s=None, idle_s=None, outside_s=None)
        laps = add_up([self.main.take(), self.captured.read() if self.captured is not None else {}])
        waits = {name.removeprefix(WAIT): s for name, s in laps.items() if name.startswith(WAIT)}
        done = {name: s for name, s in laps.items() if not name.startswith(WAIT)}
        beside = add_up([self.spent, *(other.take() for other in self.others)])
        gained = [beside.get(tier, 0.0) - waits.get(tier, 0.0) for tier in {*beside, *waits}]
        return Times(
            busy=add_up([done, beside]),
            waits=waits,
            overlap_s=sum(max(0.0, one) for one in gained),
            idle_s=sum(max(0.0, -one) for one in gained),
            outside_s=seconds - sum(laps.values()),
        )
