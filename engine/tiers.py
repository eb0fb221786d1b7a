"""The seam on several tiers: the experts of one layer computed by whoever has them, their sums joined.

    submit    x, ids, weights go down; a worker thread runs the CPU's part (the C++ op lets go of the interpreter)
              meanwhile the GPU's part is launched, and a second GPU's, then whatever the decoder does next
    collect   y = part of gpu0; y += part of gpu1; y += part of the CPU       in this order, whichever is done first

Every tier gets the ids as its bank numbers them, -1 for experts of other tiers, which its kernel skips; within a part
the sum runs over a token's choices in order. So a placement gives the same bits every time; two placements differ in
the order of sums, and in rounding where their kernels do.

What was read and sent is booked when the pass is over: the choices lie in host memory then, and nobody had to wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from ..kernels import ExpertBank
from ..loaders.weights import TierBanks
from .devices import Device
from .experts import Job
from .handoff import HandOff
from .ledger import D2D, D2H, H2D, Ledger
from .placement import Placement, Tier
from .planner import EXPERTS, ROUTING

F32, I32 = 4, 4  # bytes


class TieredExperts:
    """The experts of all layers on the tiers of a placement, beside a decoder whose home is a GPU (or plays one)."""

    def __init__(
        self,
        banks: list[TierBanks | None],
        placement: Placement,
        devices: Mapping[Tier, Device],
        handoff: HandOff,
        ledger: Ledger,
    ) -> None:
        self.banks = banks
        self.placement = placement
        self.devices = devices
        self.home = devices[placement.home]
        self.handoff = handoff
        self.ledger = ledger
        self.local = [self._tables(layer) for layer in range(len(banks))]
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="headrace-experts")
        self.running: Future[bool] | None = None
        self.booked: list[tuple[int, Tensor]] = []

    def _tables(self, layer: int) -> dict[Tier, Tensor]:
        """By tier, on its device: expert -> its number in the tier's bank, or -1; int32 [E]."""
        tables = {}
        for tier in self.placement.tiers_of(layer):
            numbers = torch.tensor(self.placement.local_ids(layer, tier), dtype=torch.int32)
            tables[tier] = numbers.to(self.devices[tier].place)
        return tables

    is_local = False

    def book(self, distinct: list[int]) -> None:
        raise AssertionError("layers with tiers run one by one")

    def submit(self, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Job:
        """Starts every tier's part. Tensors are on the home device."""
        if self.running is not None:  # an error came between submit and collect: its worker may still use the buffers
            self.running.exception()
        self._open_account()
        tiers = self.placement.tiers_of(layer)
        if Tier.CPU in tiers:
            work = self.handoff.down(layer, x_TD, ids_TK, weights_TK)
            self.running = self.worker.submit(self._on_cpu, layer, *work)
            ids = work[1]
        else:
            ids = self.handoff.ids_down(layer, ids_TK)
        self.booked.append((layer, ids))
        parts = [self._on_gpu(tier, layer, x_TD, ids_TK, weights_TK) for tier in tiers if tier is not Tier.CPU]
        return Job(layer, parts, len(x_TD))

    def _on_gpu(self, tier: Tier, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """One GPU's part, on that GPU."""
        device = self.devices[tier]
        if device is not self.home:
            x_TD, ids_TK, weights_TK = (device.put(t) for t in (x_TD, ids_TK, weights_TK))
        with device.current():
            local_TK = self.local[layer][tier][ids_TK.long()]
            part_TD: Tensor = device.ops.experts(x_TD, local_TK, weights_TK, self._bank(layer, tier))
            return part_TD

    @torch.inference_mode()
    def _on_cpu(self, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> bool:
        """The CPU's part, in the worker thread; whether any of the chosen experts is there."""
        self.handoff.mark.wait()
        local_TK = self.local[layer][Tier.CPU][ids_TK.long()]
        if not bool((local_TK >= 0).any()):
            return False
        y_TD = self.devices[Tier.CPU].ops.experts(x_TD, local_TK, weights_TK, self._bank(layer, Tier.CPU))
        self.handoff.y_TD[: len(y_TD)].copy_(y_TD)
        return True

    def _bank(self, layer: int, tier: Tier) -> ExpertBank:
        banks = self.banks[layer]
        assert banks is not None, f"layer {layer} is dense"
        return banks.banks[tier.value]

    def collect(self, job: Job) -> Tensor:
        """Waits for the CPU's part and adds all parts up on the home device: float32 [tokens, hidden]."""
        parts = [self.home.put(part) for part in job.parts]
        if Tier.CPU in self.local[job.layer]:
            assert self.running is not None, "collect without submit"
            running, self.running = self.running, None
            if running.result():
                parts.append(self.handoff.up(job.tokens))
        y_TD, *others = parts
        for part in others:
            self.home.ops.gated_add_(y_TD, part)
        return y_TD

    # ---- the account

    def _open_account(self) -> None:
        """Has the ledger ask for this pass's bytes when it is over; outside of a pass nothing is kept."""
        if self.ledger.current is None or self.ledger.later is None:
            self.booked.clear()
        if self.ledger.current is not None:
            self.ledger.later = self._book

    def _book(self) -> None:
        """Books what the tiers of every layer read, and what crossed the links."""
        self.home.wait()
        for layer, ids_TK in self.booked:
            self.book_layer(layer, ids_TK)
        self.booked.clear()

    def book_layer(self, layer: int, ids_TK: Tensor) -> None:
        """Books a layer of the current pass from its choices, which lie in host memory."""
        (T, K), D = ids_TK.shape, self.handoff.x_TD.shape[1]
        chosen = (ids_TK.flatten() if T == 1 else ids_TK.unique()).tolist()  # one token's are different already
        owners = [self.placement.experts[layer][expert] for expert in chosen]
        counts = {tier: owners.count(tier) for tier in self.local[layer]}
        for tier, count in counts.items():
            self.ledger.read(tier.channel, EXPERTS, count * self._bank(layer, tier).layout.bytes)
        hidden, routing = T * D * F32, T * K * (I32 + F32)
        if Tier.CPU in counts:
            self.ledger.read(D2H, EXPERTS, hidden)
            self.ledger.read(D2H, ROUTING, routing)
            self.ledger.read(H2D, EXPERTS, hidden if counts[Tier.CPU] else 0)
        else:
            self.ledger.read(D2H, ROUTING, T * K * I32)
        if Tier.GPU1 in counts:
            self.ledger.read(D2D, EXPERTS, 2 * hidden)
            self.ledger.read(D2D, ROUTING, routing)
