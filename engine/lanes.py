"""Work of a device in order, and points in it that other work waits for: what streams and events are on CUDA.

    lane.do(work)       work, once all that was given before is done
    mark = lane.mark()  the point that is reached when all that was given so far is done
    lane.wait(mark)     what is given from now on waits for that point, of whichever lane

In RAM there is nothing to wait for: work is done when `do` returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from .devices import Device


class Lane(Protocol):
    """One queue of a device."""

    def do(self, work: Callable[[], None]) -> None: ...

    def mark(self) -> Any: ...

    def wait(self, mark: Any) -> None: ...


class HostLane:
    """Work in RAM: done at once."""

    def do(self, work: Callable[[], None]) -> None:
        work()

    def mark(self) -> None:
        return None

    def wait(self, mark: None) -> None:
        return None


class CudaLane:
    """A stream of a GPU; None: the one that is current when work is given."""

    def __init__(self, place: torch.device, stream: torch.cuda.Stream | None = None) -> None:
        self.place = place
        self.own = stream

    @property
    def stream(self) -> torch.cuda.Stream:
        return self.own or torch.cuda.current_stream(self.place)

    def do(self, work: Callable[[], None]) -> None:
        with torch.cuda.stream(self.stream):
            work()

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(self.stream)
        return event

    def wait(self, mark: torch.cuda.Event) -> None:
        self.stream.wait_event(mark)


def of(device: Device) -> tuple[Lane, Lane]:
    """The lane that a device computes in, and one beside it for copies."""
    if not device.is_cuda:
        return HostLane(), HostLane()
    side = torch.cuda.Stream(device.place)
    return CudaLane(device.place), CudaLane(device.place, side)
