"""Lanes for tests of streaming: threads that are late by chance, and CUDA streams that note what they are told."""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from headrace.engine.devices import Device
from headrace.engine.placement import Tier
from headrace.kernels import FORMATS, ExpertBank, ExpertLayout, reference


class SlowLane:
    """A stream in a thread: work starts late, in order; a mark is an event that is set when its turn comes."""

    def __init__(self, seed: int, longest_s: float, heeds: bool = True) -> None:
        self.jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self.random = random.Random(seed)
        self.longest_s = longest_s
        self.heeds = heeds
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while (job := self.jobs.get()) is not None:
            job()

    def do(self, work: Callable[[], None]) -> None:
        def late() -> None:
            time.sleep(self.random.uniform(0, self.longest_s))
            work()

        self.jobs.put(late)

    def mark(self) -> threading.Event:
        event = threading.Event()
        self.jobs.put(event.set)
        return event

    def wait(self, mark: threading.Event) -> None:
        if self.heeds:
            self.jobs.put(lambda: None if mark.wait(20) else pytest.fail("a mark that never came"))

    def end(self) -> None:
        self.jobs.put(None)
        self.thread.join(20)
        assert not self.thread.is_alive()


def layer_of(experts: int, tokens: int, top_k: int) -> tuple[ExpertBank, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random experts in bf16, 32 by 16, with hidden states, different ids of a token, and weights."""
    torch.manual_seed(1)
    layout = ExpertLayout(format=FORMATS["bf16"], hidden=32, width=16)
    bank = ExpertBank.empty(layout, experts)
    for e in range(experts):
        for part in ("gate", "up", "down"):
            matrix = bank.matrix(e, part)
            matrix.data.copy_(torch.randn(matrix.rows, matrix.cols).bfloat16().view(torch.uint8).view_as(matrix.data))
    ids = torch.stack([torch.randperm(experts)[:top_k] for _ in range(tokens)]).int()
    return bank, torch.randn(tokens, 32), ids, torch.rand(tokens, top_k)


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
