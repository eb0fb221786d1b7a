"""Work of a device in order, and points in it that other work waits for: what streams and events are on CUDA.

    stream.do(work)           work, once all that was given before is done
    event = stream.record()   the point that is reached when all that was given so far is done
    stream.wait(event)        what is given from now on waits for that point, of whichever stream
    stream.stamp()            such a point, of which the time is kept

In RAM there is nothing to wait for: work is done when `do` returns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

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

    def record(self) -> Any: ...

    def wait(self, event: Any) -> None: ...


@dataclass(frozen=True)
class HostStream:
    """Work in RAM: done at once. Stamps are readings of the host's clock. All of them are the one thread that asks."""

    def do(self, work: Callable[[], None]) -> None:
        work()

    def record(self) -> None:
        return None

    def wait(self, event: None) -> None:
        return None

    def stamp(self) -> float:
        return time.perf_counter()

    def seconds(self, first: float, last: float) -> float:
        return last - first

    def give_back(self, stamps: Iterable[float]) -> None:
        return None


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

    def record(self) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(self.stream)
        return event

    def wait(self, event: torch.cuda.Event) -> None:
        self.stream.wait_event(event)

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
        return HostStream(), HostStream()
    side = torch.cuda.Stream(device.place)
    return CudaStream(device.place), CudaStream(device.place, side)
