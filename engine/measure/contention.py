"""What ways into memory give while another one is used: the CPU's experts beside a copy, copies up beside copies down.

    alone      |  a a a a  |  b b b  |      each way by itself, SECONDS long
    together   |  a  a  a  |                both at once, each in a thread of its own: what each moved while both ran
               |  b   b    |

Kernels and copies read the same DRAM, so that two rates which were measured apart promise more than both get. All are
taken in turns, round after round, and count as those of `kernel_rates.py` do. This file knows no GPU: a way is a
function that moves its next piece; `contention_gpu.py` has those of a GPU.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..bandwidth_model.contention import ALONE, AND
from ..devices.streams import Stream
from .kernel_rates import typical
from .other_load import alone
from .quiet_samples import Pace, Sample, best

SECONDS = 0.04  # of a sample: some ten pieces of each way
ROUNDS, QUICK_ROUNDS = 12, 6
AHEAD = 3  # copies that a stream is given before the first of them is awaited
POLL_S = 50e-6  # a driver that waits may spin, on a core that kernels need


@dataclass(frozen=True, kw_only=True)
class Way:
    """step: moves the next piece and returns its bytes when they are there. end: returns when nothing is under way."""

    name: str
    step: Callable[[], int]
    end: Callable[[], None] = lambda: None


class Step(NamedTuple):
    """When a piece began and ended, by the host's clock, and its bytes."""

    start: float
    stop: float
    size: int


class Copies:
    """Copies in a stream, one after another, without a gap between them: some are given ahead. give: the next copy,
    which the stream does; size: its bytes."""

    def __init__(self, stream: Stream, give: Callable[[], None], size: int) -> None:
        self.stream, self.give, self.size = stream, give, size
        self.events: deque[Any] = deque()

    def step(self) -> int:
        while len(self.events) < AHEAD:
            self.stream.do(self.give)
            self.events.append(self.stream.record())
        _reach(self.events.popleft())
        return self.size

    def end(self) -> None:
        while self.events:
            _reach(self.events.popleft())


def _reach(event: Any) -> None:
    """Returns when a stream's event is reached; in RAM it is."""
    while event is not None and not event.query():
        time.sleep(POLL_S)


def rates(ways: Sequence[Way], seconds: float) -> dict[str, float]:
    """Bytes a second of each way by its name, over so many seconds in which all of them are used."""
    begun: dict[str, float] = {}

    def run(way: Way) -> list[Step]:
        start = begun[way.name] = time.perf_counter()
        steps: list[Step] = []
        while not steps or len(begun) < len(ways) or start < max(begun.values()) + seconds:
            size, now = way.step(), time.perf_counter()
            steps.append(Step(start, now, size))
            start = now
        return steps

    try:
        with ThreadPoolExecutor(len(ways)) as pool:
            done = list(pool.map(run, ways))
    finally:
        for way in ways:
            way.end()
    first = max(begun.values())
    return {way.name: moved(steps, first, first + seconds) / seconds for way, steps in zip(ways, done, strict=True)}


def moved(steps: Sequence[Step], first: float, last: float) -> float:
    """Bytes that were moved between two times; those of a step are spread evenly over it."""
    parts = ((max(0.0, min(s.stop, last) - max(s.start, first)), s) for s in steps)
    return sum(s.size * part / (s.stop - s.start) for part, s in parts)


def measure(pairs: Sequence[tuple[Way, Way]], rounds: int, seconds: float = SECONDS) -> dict[str, dict[str, float]]:
    """By pair ("a + b") bytes a second: of "a" and "b" at once, and of "a alone" and "b alone"."""
    single = {way.name: (way,) for pair in pairs for way in pair}
    runs: list[tuple[Way, ...]] = [*single.values(), *pairs]
    found: dict[str, list[Sample]] = {key: [] for ways in runs for key in _keys(ways)}
    pace = Pace()

    def one_round() -> None:
        pace()
        for ways in runs:
            measured = rates(ways, seconds)
            now = pace.since_before()
            for key, rate in zip(_keys(ways), measured.values(), strict=True):
                found[key].append(Sample(rate, now))

    def forget() -> None:
        for samples in found.values():
            samples.pop()

    one_round()
    forget()
    alone(rounds, one_round, forget)
    rate = typical(found, best([one.pace_s for samples in found.values() for one in samples]))
    return {AND.join(way.name for way in pair): _of_pair(pair, rate) for pair in pairs}


def _keys(ways: tuple[Way, ...]) -> Iterator[str]:
    """Names of what one run measures, each once in all runs."""
    for way in ways:
        yield way.name + ALONE if len(ways) == 1 else way.name + AND + AND.join(w.name for w in ways)


def _of_pair(pair: tuple[Way, Way], rate: Mapping[str, float]) -> dict[str, float]:
    both = {way.name: rate[key] for way, key in zip(pair, _keys(pair), strict=True)}
    return {**both, **{way.name + ALONE: rate[way.name + ALONE] for way in pair}}
