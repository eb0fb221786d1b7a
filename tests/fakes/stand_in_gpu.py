"""What stands in for a GPU's driver and graphs behind `LLM`: the fake driver, its stream, graphs that are called again.

Everything but torch's CUDA calls is real: config, choice, probe, arenas, mailbox, coordinator, posting, ledger.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from headrace.engine.cuda_graphs import gpu_runtime
from headrace.engine.cuda_graphs.gpu_runtime import Runtime
from headrace.engine.cuda_graphs.mailbox_experts import copy_job
from headrace.engine.cuda_graphs.signals import VARIANTS, Trial
from headrace.engine.devices.cuda_driver import Driver
from headrace.engine.devices.device import Device

# What a probe of signals finds where all of them work.
WORKS = {name: Trial(name=name, us=us) for name, us in zip(VARIANTS, (5.0, 60.0, 9.0, 3.0), strict=True)}


class StreamClock:
    """Stamps of a stream of the fake driver: the host's clock, once the stream is there."""

    def __init__(self, driver: Driver, handle: int) -> None:
        self.driver, self.handle = driver, handle

    def stamp(self) -> float:
        self.driver.synchronize(self.handle)
        return time.perf_counter()

    def seconds(self, first: float, last: float) -> float:
        return last - first

    def give_back(self, stamps: Iterable[float]) -> None:
        return None


class InTurn(Driver):
    """A driver whose caller goes on when its streams do: the ops after a wait are Python's, and read y at once."""

    def wait(self, stream: int, address: int, value: int) -> None:
        super().wait(stream, address, value)
        self.synchronize(stream)

    def host_function(self, stream: int, function: int, argument: int) -> None:
        super().host_function(stream, function, argument)
        self.synchronize(stream)


class Replayed:
    """A graph that is its step, called again."""

    def __init__(self, step: Callable[[], None]) -> None:
        self.step, self.runs = step, 0

    def replay(self) -> None:
        self.runs += 1
        self.step()


class StreamRecorder:
    """Captures without running, as CUDA does; what a step posts goes through a stream of the fake driver."""

    def __init__(self, driver: Driver) -> None:
        self.driver, self.handle = driver, driver.stream()
        self.replays = 0

    def run(self, step: Callable[[], None]) -> None:
        step()
        self.driver.synchronize(self.handle)

    def capture(self, step: Callable[[], None]) -> Replayed:
        return Replayed(step)

    def replay(self, graph: Any, meanwhile: Callable[[], None]) -> None:
        self.replays += 1
        graph.replay()
        meanwhile()
        self.driver.synchronize(self.handle)


class StandIn:
    """Made by `install`: the recorders and drivers that were handed out."""

    def __init__(self, library: str) -> None:
        self.library = library
        self.recorders: list[StreamRecorder] = []

    def find(self, device: Device) -> tuple[Runtime, str]:
        driver = InTurn(self.library)
        driver.make_current(0)

        def recorder() -> StreamRecorder:
            self.recorders.append(StreamRecorder(driver))
            return self.recorders[-1]

        def stream() -> StreamClock:
            return StreamClock(driver, self.recorders[-1].handle)

        found = Runtime(driver=driver, number=0, name="fake", recorder=recorder, pack=copy_job, stream=stream)
        return found, ""


def install(monkeypatch: pytest.MonkeyPatch, library: str) -> StandIn:
    """From now on models beside a (simulated) GPU find the stand-in."""
    made = StandIn(library)
    monkeypatch.setattr(gpu_runtime, "find", made.find)
    return made
