"""Experts that stay in the model's file, computed by the CPU from RAM: those that are there at once, the others as they
come.

    choices known: the policy is asked | CPU: what is in RAM | CPU: what has come | CPU: what has come | sum
                                         disk: what is missing ....................

What the policy does not keep goes through a few blocks of RAM (`staging.py`). So do the experts of prompts, which
choose nearly all of a layer: they are read in pieces, and change nothing of what is resident.
"""

from __future__ import annotations

import time
from collections import deque

import torch
from torch import Tensor

from ....kernels import Ops
from ...ledger.pass_bytes import EXPERTS, PREFETCHED
from ...ledger.passes import CPU_DRAM, DISK, LayerWork
from ...ledger.timers import Timers
from ..backend import Chosen, Job, Moved, distinct
from .disk_cache import DiskCache, Use
from .reads import Reading
from .rows import Rows
from .staging import Staging


class DiskExperts:
    """As an `ExpertBackend`. ops: of the CPU."""

    def __init__(self, cache: DiskCache, ops: Ops, timers: Timers) -> None:
        self.cache, self.ops, self.timers = cache, ops, timers
        self.files, self.reads = cache.files, cache.reads
        self.staging = Staging(self.files.layouts)

    def submit(self, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Job:
        """Computes a layer; shapes as of `CpuExperts.submit`. Raises what a read failed of; what is resident then stays
        as it is."""
        use = self.cache.ask(layer, ids_TK)
        on_input = self.files.layouts[use.number].weighs_input
        rows = Rows(self.ops, x_TD, ids_TK, weights_TK, self.cache.shape.experts[use.number], on_input)
        try:
            _Layer(self, use, rows).run()
        finally:
            self.cache.behind(use)
        moved = Moved(frozenset(), use.read, use.ahead)
        return Job([rows.sum()], Chosen(layer, ids_TK, weights_TK=weights_TK, moved=moved))

    def collect(self, job: Job) -> tuple[Tensor, Chosen]:
        """float32 [tokens, hidden]."""
        return job.parts[0], job.chosen

    def work(self, chosen: Chosen) -> LayerWork:
        """What a layer read: from RAM what it computed with, from the disk what was not there, as it is stored."""
        number, moved = self.cache.number[chosen.layer], chosen.moved
        assert moved is not None, "a layer that no cache was asked about"
        count = distinct(chosen.ids_TK, self.cache.shape.experts[number])
        read = {
            CPU_DRAM: {EXPERTS: count * self.cache.shape.expert_bytes[number]},
            DISK: {EXPERTS: moved.fetched * self.files.read_bytes[number], PREFETCHED: moved.behind},
        }
        pairs = {CPU_DRAM: chosen.ids_TK.numel()}
        return LayerWork(layer=chosen.layer, tokens=len(chosen.ids_TK), bytes=read, pairs=pairs, behind=moved.behind)


class _Layer:
    """One layer of one pass: reads and computes until nothing is missing."""

    def __init__(self, experts: DiskExperts, use: Use, rows: Rows) -> None:
        self.cache, self.reads, self.timers = experts.cache, experts.reads, experts.timers
        self.use, self.rows = use, rows
        layout = experts.files.layouts[use.number]
        self.files, self.bank, self.free = experts.files, experts.staging.banks[layout], experts.staging.free[layout]
        self.others, self.staged = deque(use.others), dict[Reading, tuple[int, int]]()
        self.kept: list[int] = []  # blocks of experts that are admitted

    def run(self) -> None:
        try:
            while True:
                self._start()
                self._compute_ready()
                readings = [*self.use.coming.values(), *self.staged]
                if not readings:
                    assert not self.others, "experts for which there is no block"
                    return
                self._take(self._wait(readings))
        finally:
            for reading, (_, block) in self.staged.items():
                self.reads.stop(reading)
                self.free.append(block)
            self.free.extend(self.kept)

    def _start(self) -> None:
        """Begins to read as many of the others as there are blocks for."""
        while self.others and self.free:
            expert, block = self.others.popleft(), self.free.pop()
            reading = self.files.reading((self.use.number, expert), self.bank.data[block])
            self.staged[reading] = expert, block
            self.reads.start(reading)

    def _compute_ready(self) -> None:
        if self.use.ready:
            places, bank = self.cache.places(self.use.number), self.cache.bank(self.use.number)
            assert bank is not None, "residents without a place"
            self.rows.add(self.use.ready, places[torch.tensor(self.use.ready)], bank)
            self.use.ready = []

    def _wait(self, readings: list[Reading]) -> set[Reading]:
        start = time.perf_counter()
        done = self.reads.wait(readings)
        self.timers.spend(DISK, time.perf_counter() - start)
        return set(done)

    def _take(self, done: set[Reading]) -> None:
        """Takes in what has come: residents are ready, others are computed and their blocks free again."""
        for expert in [expert for expert, reading in self.use.coming.items() if reading in done]:
            self.cache.arrived(self.use, expert)
        come = {reading: self.staged[reading] for reading in done if reading in self.staged}
        for reading in come:
            if reading.error is not None:
                raise reading.error
        if not come:
            return
        experts, blocks = [expert for expert, _ in come.values()], [block for _, block in come.values()]
        self.rows.add(experts, torch.tensor(blocks), self.bank)
        for reading, (expert, block) in come.items():
            del self.staged[reading]
            if expert in self.use.moves.admit and 2 * len(self.kept) < self.bank.experts - 2:
                self.use.held[expert] = self.bank.data[block]
                self.kept.append(block)
            else:
                self.free.append(block)
