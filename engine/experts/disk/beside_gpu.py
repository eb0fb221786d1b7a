"""Experts on a disk beside a GPU that computes all else: a layer's hidden states go down, the CPU computes its experts
as they are there or come, and the sum goes up.

    x, ids, weights down | as in disk_experts.py, while the GPU waits | y up

Reads are waited for between the layers of a pass, so that no step is a graph.
"""

from __future__ import annotations

import time

from torch import Tensor

from ....kernels import Ops
from ...devices.device import Device
from ...ledger.pass_bytes import EXPERTS, ROUTING
from ...ledger.passes import CPU_DRAM, D2H, DISK, H2D, LayerWork
from ...ledger.timers import Timers, wait
from ..backend import Chosen, Job
from ..host_buffers import HostBuffers
from .disk_cache import DiskCache
from .disk_experts import DiskExperts

F32, I32 = 4, 4  # bytes


class DiskBesideGpu(DiskExperts):
    """main: the GPU, or what plays one; buffers: between it and the CPU."""

    def __init__(self, cache: DiskCache, ops: Ops, timers: Timers, main: Device, buffers: HostBuffers) -> None:
        super().__init__(cache, ops, timers)
        self.main, self.buffers, self.here = main, buffers, main.tier.channel

    def submit(self, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Job:
        """Computes a layer; tensors are on the GPU. Raises as `DiskExperts.submit`."""
        self.timers.span(self.here)
        work = self.buffers.down(layer, x_TD, ids_TK, weights_TK)
        self.timers.span(D2H)
        self.buffers.event.wait()
        begin, waited = time.perf_counter(), self.timers.spent.get(DISK, 0.0)
        job = super().submit(layer, work[0], work[1], work[2])
        self.buffers.y_TD[: len(x_TD)].copy_(job.parts[0])
        waited = self.timers.spent.get(DISK, 0.0) - waited
        self.timers.spend(CPU_DRAM, time.perf_counter() - begin - waited)
        return job._replace(chosen=job.chosen._replace(weights_TK=weights_TK))

    def collect(self, job: Job) -> tuple[Tensor, Chosen]:
        """float32 [tokens, hidden], on the GPU."""
        self.timers.span(wait(CPU_DRAM))
        y_TD = self.buffers.up(len(job.parts[0]))
        self.timers.span(H2D)
        return y_TD, job.chosen

    def work(self, chosen: Chosen) -> LayerWork:
        """The same, and what crossed the link."""
        found = super().work(chosen)
        (T, K), D = chosen.ids_TK.shape, self.buffers.x_TD.shape[1]
        found.bytes[D2H] = {EXPERTS: T * D * F32, ROUTING: T * K * (I32 + F32)}
        found.bytes[H2D] = {EXPERTS: T * D * F32}
        return found
