"""The boundary between the decoder and wherever experts are computed: submit a layer's work, collect its result.

The decoder submits as soon as it knows which experts its tokens chose, does what does not depend on them (the shared
expert), and collects. What lies behind decides where the bytes are read, and says which. `CpuExperts` has every expert
in RAM and computes at once, on all threads; there is nothing to overlap with on a CPU alone. Several tiers:
`tiered.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ...kernels import Ops
from ...kernels.packed import ExpertBank
from ..ledger.pass_bytes import EXPERTS
from ..ledger.passes import CPU_DRAM, HostWork, LayerWork


class Moved(NamedTuple):
    """What a layer had to do with the cache, for the account. there: its experts that were computed in VRAM; fetched:
    how many of them came for it; behind: bytes that came behind it, of any layer; places: bytes of tables and
    places of choices that were sent up for it; stored: its experts that a second GPU computed; across: bytes of places
    of choices that went there from the first one."""

    there: frozenset[int]
    fetched: int = 0
    behind: int = 0
    places: int = 0
    stored: frozenset[int] = frozenset()
    across: int = 0


class Wired(NamedTuple):
    """Of a layer whose experts lie on several machines: bytes of rows and of everything else on the wire, both ways;
    different experts that this machine computed itself, and choices that they served; what each host did."""

    rows: int
    besides: int
    own: int
    own_pairs: int
    hosts: tuple[HostWork, ...] = ()


class Chosen(NamedTuple):
    """What a layer that ran had to do with: its tokens' choices, which are in host memory when its device is done;
    whether all chosen experts of RAM were copied to the GPU, and how many that nobody chose. weights: of the choices,
    float32 [T, K] on any device, where they are known. moved: what a cache of experts had to do; wired: what went
    to other machines and came back."""

    layer: int
    ids_TK: Tensor
    is_streamed: bool = False
    unchosen: int = 0
    weights_TK: Tensor | None = None
    moved: Moved | None = None
    wired: Wired | None = None


class ExpertBackend(Protocol):
    """The routed experts of all layers."""

    def submit(self, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Any:
        """Starts the experts of one layer; ids int32 and weights float32 [tokens, experts per token]. Returns the job
        that `collect` takes."""

    def collect(self, job: Any) -> tuple[Tensor, Chosen]:
        """Waits for the weighted sum of the experts, float32 [tokens, hidden]; and what `work` makes bytes of."""

    def work(self, chosen: Chosen) -> LayerWork:
        """What a layer read and sent, by tier. The device must be done with the pass."""


class Job(NamedTuple):
    """Work under way: `parts`, float32 [tokens, hidden], are those of the result that are known or on their way."""

    parts: list[Tensor]
    chosen: Chosen


class CpuExperts:
    """All experts in RAM, computed by the CPU kernels."""

    def __init__(self, banks: list[ExpertBank | None], ops: Ops) -> None:
        self.banks = banks
        self.expert_bytes = [0 if bank is None else bank.layout.bytes for bank in banks]
        self.ops = ops

    def submit(self, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Job:
        bank = self.banks[layer]
        assert bank is not None, f"layer {layer} is dense"
        return Job([self.ops.experts(x_TD, ids_TK, weights_TK, bank)], Chosen(layer, ids_TK, weights_TK=weights_TK))

    def collect(self, job: Job) -> tuple[Tensor, Chosen]:
        return job.parts[0], job.chosen

    def work(self, chosen: Chosen) -> LayerWork:
        layer, ids_TK = chosen.layer, chosen.ids_TK
        bank = self.banks[layer]
        assert bank is not None, f"layer {layer} is dense"
        size = distinct(ids_TK, bank.experts) * self.expert_bytes[layer]
        read, pairs = {CPU_DRAM: {EXPERTS: size}}, {CPU_DRAM: ids_TK.numel()}
        return LayerWork(layer=layer, tokens=len(ids_TK), bytes=read, pairs=pairs)

    def bytes_of(self, distinct: Sequence[int]) -> tuple[int, ...]:
        """Bytes of each layer in a pass in which it read so many different experts (0: a dense one)."""
        return tuple(count * one for count, one in zip(distinct, self.expert_bytes, strict=True))


def distinct(ids_TK: Tensor, experts: int) -> int:
    """How many different experts were chosen; the ids of one token are different already."""
    if ids_TK.shape[0] == 1:
        return ids_TK.shape[1]
    return int(torch.bincount(ids_TK.flatten(), minlength=experts).count_nonzero())
