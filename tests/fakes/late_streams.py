"""Streams for tests of streaming: threads that are late by chance, and CUDA streams that note what they are told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from headrace.engine.devices.device import Device
from headrace.engine.placement.placement import Tier
from headrace.kernels import reference


def is_right(sums: list[torch.Tensor], wanted: torch.Tensor) -> bool:
    return all(bool((y - wanted).abs().max() <= 1e-5 * wanted.abs().max()) for y in sums)


class Log:
    """Streams and events of CUDA that write down what they are told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines: list[str] = []
        self.events = 0
        log = self

        class Stream:
            def __init__(self, place: object = None, name: str = "side") -> None:
                self.name = name

            def wait_event(self, event: Event) -> None:
                log.lines.append(f"{self.name} waits for {event.number}")

        class Event:
            def record(self, stream: Stream) -> None:
                self.number = log.events
                log.events += 1
                log.lines.append(f"{stream.name} sets {self.number}")

        @contextlib.contextmanager
        def current(stream: Stream) -> Iterator[None]:
            log.lines.append(f"{stream.name} works")
            yield

        main = Stream(name="main")
        for name, fake in (("Stream", Stream), ("Event", Event), ("stream", current)):
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda place: main)


def a_gpu() -> Device:
    """What a GPU is to those who only ask for its place."""
    place = torch.device("cuda", 0)
    ops: Any = reference
    return Device(tier=Tier.GPU0, place=place, backend="gpu", ops=ops, name="a GPU", free=1)
