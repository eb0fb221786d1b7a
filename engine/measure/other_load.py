"""Who else computes on this machine: what a measurement says about itself, and why some of it is repeated."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

CROWDED = 0.2  # cores that others take, from which on a round is repeated
SHARE = 0.05  # of all cores: a large machine is never wholly idle
LOOK_S = 0.5
PATIENCE = 2  # repeated rounds at most, for each that is wanted


class Strangers:
    """How many cores other processes took since this object was made, other guests of the host included (steal)."""

    def __init__(self) -> None:
        self.start = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        times = psutil.cpu_times()
        names = ("user", "nice", "system", "irq", "softirq", "steal")
        return time.perf_counter(), sum(getattr(times, name, 0.0) for name in names) - time.process_time()

    def cores(self) -> float:
        wall, used = (now - start for now, start in zip(self._now(), self.start, strict=True))
        return round(max(0.0, used) / max(wall, 1e-9), 2)

    def were_in_the_way(self) -> float:
        """The cores that others took, if they slowed a run down; 0 for one too short to tell: system clocks tick
        every 10 ms."""
        cores = self.cores()
        return cores if are_in_the_way(cores) and time.perf_counter() - self.start[0] >= LOOK_S else 0.0


def are_in_the_way(cores: float) -> bool:
    """Whether others who take so many cores slow a measurement down by more than it is off anyway."""
    return cores > max(CROWDED, SHARE * (psutil.cpu_count() or 1))


def look() -> float:
    """How many cores others take now; about half a second."""
    others = Strangers()
    time.sleep(LOOK_S)
    return others.cores()


def alone(rounds: int, one_round: Callable[[], None], forget: Callable[[], None]) -> int:
    """Runs `one_round` so many times while nobody else computes: `forget` drops what a crowded round brought, and it
    runs again, at most PATIENCE times as often as asked; how many were repeated. When patience ends, crowded rounds
    count."""
    done = repeated = 0
    while done < rounds:
        others = Strangers()
        one_round()
        if others.cores() > CROWDED and repeated < PATIENCE * rounds:
            repeated += 1
            forget()
        else:
            done += 1
    return repeated
