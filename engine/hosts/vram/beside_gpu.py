"""A coordinator with a GPU: it computes all else and the experts that lie in its VRAM, while hosts compute the others.

    x, ids, weights down | GPU: experts in VRAM, shared expert ................... | y up, both added
                         | hosts, and what the coordinator has in RAM: the others  |

Every side gets the choices of its own experts, -1 for the rest. The sum is that of a GPU and the CPU beside it: the
part in VRAM, then the part of all others in the order of choices. A layer whose experts all lie in VRAM asks no host.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ....kernels.packed import ExpertBank
from ....loaders.weights.model_weights import TierBanks
from ...devices.device import Device
from ...experts.backend import Chosen, Job, distinct
from ...experts.host_buffers import HostBuffers
from ...ledger.pass_bytes import EXPERTS, ROUTING
from ...ledger.passes import D2H, H2D, NET, LayerWork
from ...ledger.timers import Timers, wait
from ...placement.placement import Placement, Tier
from ..net_experts import NetExperts

F32, I32 = 4, 4  # bytes


class Beside(NamedTuple):
    """main: the GPU, or what plays one; buffers: between it and the CPU; banks: of the model's layers, in
    parts where VRAM has some experts."""

    main: Device
    buffers: HostBuffers
    banks: Sequence[ExpertBank | TierBanks | None]


class NetBesideGpu:
    """As an `ExpertBackend`. net: the experts that are not in VRAM; placement: what is."""

    def __init__(self, net: NetExperts, beside: Beside, placement: Placement, timers: Timers) -> None:
        self.net, self.timers, self.placement = net, timers, placement
        self.main, self.buffers, _ = beside
        self.here = self.main.tier.channel
        self.banks = [self._bank(bank, layer) for layer, bank in enumerate(beside.banks)]
        self.numbers = [self._numbers(layer).to(self.main.place) for layer in range(len(self.banks))]
        self.others = [self._numbers(layer) < 0 for layer in range(len(self.banks))]  # in host memory

    def _bank(self, bank: ExpertBank | TierBanks | None, layer: int) -> ExpertBank | None:
        """What a layer has in VRAM."""
        if not self.placement.count(layer, Tier.GPU0):
            return None
        assert isinstance(bank, TierBanks), "experts in VRAM that are not apart from the others"
        return bank.banks[Tier.GPU0.value]

    def _numbers(self, layer: int) -> Tensor:
        """Expert -> its number in VRAM, or -1; int32 [E]."""
        return torch.tensor(self.placement.local_ids(layer, Tier.GPU0), dtype=torch.int32)

    def submit(self, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Job:
        """Starts a layer; tensors are on the GPU. Raises DeviceError where experts cannot be had."""
        self.timers.span(self.here)
        if not bool(self.others[layer].any()):
            self.net.settle()  # what an error left under way is no part of this layer
            ids = self.buffers.ids_down(layer, ids_TK)
            self.timers.span(D2H)
            return Job([self._in_vram(layer, x_TD, ids_TK, weights_TK)], Chosen(layer, ids, weights_TK=weights_TK))
        x, ids, weights = self.buffers.down(layer, x_TD, ids_TK, weights_TK)
        self.timers.span(D2H)
        has_own = self.banks[layer] is not None
        parts = [self._in_vram(layer, x_TD, ids_TK, weights_TK)] if has_own else []
        self.buffers.event.wait()
        asked = torch.where(self.others[layer][ids.long()], ids, -1) if has_own else ids
        job = self.net.submit(layer, x, asked, weights, is_partial=has_own)
        return Job([*parts, *job.parts], Chosen(layer, ids, weights_TK=weights_TK))

    def _in_vram(self, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """The GPU's part."""
        bank, numbers_E = self.banks[layer], self.numbers[layer]
        assert bank is not None, "a layer without experts in VRAM"
        with self.main.current():
            numbers = None if bank.experts == len(numbers_E) else numbers_E  # with all there, ids are their numbers
            found: Tensor = self.main.ops.experts(x_TD, ids_TK, weights_TK, bank, numbers)
        return found

    def collect(self, job: Job) -> tuple[Tensor, Chosen]:
        """float32 [tokens, hidden], on the GPU. Raises DeviceError where experts cannot be had."""
        parts, chosen = list(job.parts), job.chosen
        self.timers.span(self.here)
        if self.net.is_asked:
            found_TD, done = self.net.collect(job)
            self.buffers.y_TD[: len(found_TD)].copy_(found_TD)
            self.timers.span(wait(NET))
            parts.append(self.buffers.up(len(found_TD)))
            self.timers.span(H2D)
            chosen = chosen._replace(wired=done.wired)
        y_TD, *others = parts
        for part in others:
            self.main.ops.gated_add_(y_TD, part)
        return y_TD, chosen

    def work(self, chosen: Chosen) -> LayerWork:
        """What a layer read in VRAM and in the coordinator's RAM, and what crossed the link and the wire."""
        layer, ids_TK = chosen.layer, chosen.ids_TK
        (T, K), D = ids_TK.shape, self.buffers.x_TD.shape[1]
        is_other_TK = self.others[layer][ids_TK.long()]
        here_N = ids_TK[~is_other_TK]
        found: defaultdict[str, dict[str, int]] = defaultdict(dict)
        work = LayerWork(layer=layer, tokens=T, bytes={}, pairs={})
        if chosen.wired is None:
            found[D2H] = {ROUTING: T * K * I32}
        else:
            work = self.net.work(chosen._replace(ids_TK=ids_TK[is_other_TK]))
            found |= work.bytes
            found[D2H] = {EXPERTS: T * D * F32, ROUTING: T * K * (I32 + F32)}
            found[H2D] = {EXPERTS: T * D * F32}
        bank = self.banks[layer]
        if bank is not None:
            count = distinct(here_N[:, None], len(self.others[layer])) if len(here_N) else 0
            found[self.here] = {EXPERTS: count * bank.layout.bytes}
        return replace(work, tokens=T, bytes=dict(found), pairs={**work.pairs, self.here: len(here_N)})
