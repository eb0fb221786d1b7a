"""The seam between the decoder and wherever experts are computed: submit a layer's work, collect its result.

The decoder submits as soon as it knows which experts its tokens chose, does what does not depend on them (the shared
expert), and collects. What lies behind decides where the bytes are read, and books them. `CpuExperts` has every expert
in RAM and computes at once, on all threads; there is nothing to overlap with on a CPU alone. Several tiers:
`tiered.py`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...kernels import Ops
from ...kernels.packed import ExpertBank
from ..ledger.ledger import CPU_DRAM, Ledger
from ..ledger.pass_bytes import EXPERTS


class Job(NamedTuple):
    """Work under way: `parts`, float32 [tokens, hidden], are those of the result that are known or on their way."""

    layer: int
    parts: list[Tensor]
    tokens: int


class Experts(Protocol):
    """The routed experts of all layers. `is_local`: all of them lie where attention runs, in banks of the layers, so
    that a backend may run layers without asking; what it chose is then booked afterwards."""

    @property
    def is_local(self) -> bool: ...

    def book(self, distinct: list[int]) -> None:
        """Books a pass in which each layer read so many different experts (0: a dense one)."""

    def submit(self, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Job:
        """Starts the experts of one layer; ids int32 and weights float32 [tokens, experts per token]."""

    def collect(self, job: Job) -> Tensor:
        """Waits for the weighted sum of the experts: float32 [tokens, hidden]."""


class CpuExperts:
    """All experts in RAM, computed by the CPU kernels."""

    def __init__(self, banks: list[ExpertBank | None], ops: Ops, ledger: Ledger) -> None:
        self.banks = banks
        self.expert_bytes = [0 if bank is None else bank.layout.bytes for bank in banks]
        self.ops = ops
        self.ledger = ledger

    is_local = True

    def book(self, distinct: list[int]) -> None:
        size = sum(count * one for count, one in zip(distinct, self.expert_bytes, strict=True))
        self.ledger.read(CPU_DRAM, EXPERTS, size)

    def submit(self, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Job:
        bank = self.banks[layer]
        assert bank is not None, f"layer {layer} is dense"
        self.ledger.read(CPU_DRAM, EXPERTS, distinct(ids_TK, bank.experts) * self.expert_bytes[layer])
        return Job(layer, [self.ops.experts(x_TD, ids_TK, weights_TK, bank)], len(x_TD))

    def collect(self, job: Job) -> Tensor:
        return job.parts[0]


def distinct(ids_TK: Tensor, experts: int) -> int:
    """How many different experts were chosen; the ids of one token are different already."""
    if ids_TK.shape[0] == 1:
        return ids_TK.shape[1]
    return int(torch.bincount(ids_TK.flatten(), minlength=experts).count_nonzero())
