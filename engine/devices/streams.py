"""Work of a device in order, and points in it that other work waits for: what streams and events are on CUDA.

    stream.do(work)           work, once all that was given before is done
    stream.copy(to, from)     a copy, as work; of pinned memory it goes on beside the host
    event = stream.record()   the point that is reached when all that was given so far is done
    stream.wait(event)        what is given from now on waits for that point, of whichever stream
    stream.reached(event)     whether it has come, asked by the host
    stream.stamp()            such a point, of which the time is kept

In RAM there is nothing to wait for: work is done when `do` returns. Copies over a link that is played, too, may take
the time that they would take on one of a given speed (`PacedStream`).
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from .device import Device


class Stamps(Protocol):
    """Whoever can say when a point in its work was reached."""

    def stamp(self) -> Any:
        """A point after all that was given so far; its time is known when the work is done."""

    def seconds(self, first: Any, last: Any) -> float:
        """From one stamp to a later one of the same stream, both of which were reached."""

    def give_back(self, stamps: Iterable[Any]) -> None:
        """Stamps that nobody asks about any more."""


class Stream(Stamps, Protocol):
    """One queue of a device."""

    def do(self, work: Callable[[], None]) -> None: ...

    def copy(self, target: Tensor, source: Tensor) -> None: ...

    def record(self) -> Any: ...

    def wait(self, event: Any) -> None: ...

    def reached(self, event: Any) -> bool: ...


class Reached(threading.Event):
    """A point in the work of a stream in RAM, and the host's clock when it was reached."""

    at = 0.0

    def set(self) -> None:
        self.at = time.perf_counter()
        super().set()


@dataclass(frozen=True)
class HostStream:
    """Work in RAM: done at once. Stamps are readings of the host's clock. All of them are the one thread that asks."""

    def do(self, work: Callable[[], None]) -> None:
        work()

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source)

    def record(self) -> None:
        return None

    def wait(self, event: Reached | None) -> None:
        if event is not None:  # of a stream in RAM that takes its time
            event.wait()

    def reached(self, event: Reached | None) -> bool:
        return event is None or event.is_set()

    def stamp(self) -> float:
        return time.perf_counter()

    def seconds(self, first: float, last: float) -> float:
        return last - first

    def give_back(self, stamps: Iterable[float]) -> None:
        return None


class PacedStream:
    """A stream in RAM whose copies take as long as over a link of so many bytes per second: in a thread, in order."""

    def __init__(self, bytes_s: float) -> None:
        self.bytes_s = bytes_s
        self.link = _Link()
        self.jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        threading.Thread(target=_work, args=(self.jobs,), daemon=True, name="headrace-link").start()
        weakref.finalize(self, self.jobs.put, None)

    def do(self, work: Callable[[], None]) -> None:
        self.jobs.put(work)

    def copy(self, target: Tensor, source: Tensor) -> None:
        seconds = source.nbytes / self.bytes_s
        self.jobs.put(lambda: target.copy_(source))
        self.jobs.put(partial(self.link.carry, seconds))

    def record(self) -> Reached:
        event = Reached()
        self.jobs.put(event.set)
        return event

    def wait(self, event: Reached | None) -> None:
        if event is not None:
            self.jobs.put(event.wait)

    def reached(self, event: Reached | None) -> bool:
        return event is None or event.is_set()

    def stamp(self) -> Reached:
        return self.record()

    def seconds(self, first: Reached, last: Reached) -> float:
        last.wait()
        return last.at - first.at

    def give_back(self, stamps: Iterable[Reached]) -> None:
        return None


def _work(jobs: queue.SimpleQueue[Callable[[], object] | None]) -> None:
    """The thread of a paced stream, which holds nothing of it but its jobs."""
    while (job := jobs.get()) is not None:
        job()


class _Link:
    """When a link is done with what it carries, by the host's clock."""

    free_at = 0.0

    def carry(self, seconds: float) -> None:
        """Busy for so long, from when it was free."""
        now = time.perf_counter()
        self.free_at = max(self.free_at, now) + seconds
        time.sleep(max(0.0, self.free_at - now))


class CudaStream:
    """A stream of a GPU; None: the one that is current when work is given. Stamps are events, kept to be used again."""

    def __init__(self, place: torch.device, stream: torch.cuda.Stream | None = None) -> None:
        self.place = place
        self.own = stream
        self.spare: list[torch.cuda.Event] = []

    @property
    def stream(self) -> torch.cuda.Stream:
        return self.own or torch.cuda.current_stream(self.place)

    def do(self, work: Callable[[], None]) -> None:
        with torch.cuda.stream(self.stream):
            work()

    def copy(self, target: Tensor, source: Tensor) -> None:
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)

    def record(self) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(self.stream)
        return event

    def wait(self, event: torch.cuda.Event) -> None:
        self.stream.wait_event(event)

    def reached(self, event: torch.cuda.Event) -> bool:
        return bool(event.query())

    def stamp(self) -> torch.cuda.Event:
        """In a capture a node of the graph, which every replay sets anew."""
        if torch.cuda.is_current_stream_capturing():
            event = torch.cuda.Event(enable_timing=True, external=True)
        else:
            event = self.spare.pop() if self.spare else torch.cuda.Event(enable_timing=True)
        event.record(self.stream)
        return event

    def seconds(self, first: torch.cuda.Event, last: torch.cuda.Event) -> float:
        return float(first.elapsed_time(last)) * 1e-3

    def give_back(self, stamps: Iterable[torch.cuda.Event]) -> None:
        self.spare.extend(stamps)


def of(device: Device) -> tuple[Stream, Stream]:
    """The stream that a device computes in, and one beside it for copies."""
    if not device.is_cuda:
        return HostStream(), HostStream() if device.link_bytes_s is None else PacedStream(device.link_bytes_s)
    side = torch.cuda.Stream(device.place)
    return CudaStream(device.place), CudaStream(device.place, side)
