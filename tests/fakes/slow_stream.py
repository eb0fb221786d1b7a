"""A stream that is a thread, for tests of streams: late by chance, or slow on purpose; and a layer to run through
it."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterable

import pytest
import torch

from headrace.kernels import FORMATS, ExpertLayout
from headrace.kernels.packed import ExpertBank


class Reached(threading.Event):
    """A mark that can be asked, as an event of a GPU can."""

    def query(self) -> bool:
        return self.is_set()


class SlowStream:
    """A stream in a thread: work starts late, in order; a mark is an event that is set when its turn comes."""

    def __init__(self, seed: int, longest_s: float, heeds: bool = True, shortest_s: float = 0.0) -> None:
        self.jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self.random = random.Random(seed)
        self.shortest_s, self.longest_s = shortest_s, longest_s
        self.heeds = heeds
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while (job := self.jobs.get()) is not None:
            job()

    def do(self, work: Callable[[], None]) -> None:
        def late() -> None:
            time.sleep(self.random.uniform(self.shortest_s, self.longest_s))
            work()

        self.jobs.put(late)

    def record(self) -> Reached:
        event = Reached()
        self.jobs.put(event.set)
        return event

    def wait(self, mark: Reached) -> None:
        if self.heeds:
            self.jobs.put(lambda: None if mark.wait(20) else pytest.fail("a mark that never came"))

    def stamp(self) -> list[float]:
        """The time when its turn comes, as the one value of a list."""
        reached: list[float] = []
        self.jobs.put(lambda: reached.append(time.perf_counter()))
        return reached

    def seconds(self, first: list[float], last: list[float]) -> float:
        return last[0] - first[0]

    def give_back(self, stamps: Iterable[list[float]]) -> None:
        return None

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
