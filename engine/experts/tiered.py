"""Experts on several tiers: those of one layer computed by whoever has them, their sums joined.

    submit    x, ids, weights go down; a worker thread runs the CPU's part (the C++ op lets go of the interpreter)
              meanwhile the GPU's part is launched, and a second GPU's, then whatever the decoder does next
    collect   y = part of gpu0; y += part of gpu1; y += part of copied experts; y += part of the CPU
                                                                              in this order, whichever is done first

Where `offload_plan.py` says that the chosen experts of RAM are computed on the GPU, submit waits for the ids, then
starts the copies (`streaming.py`): also the first ones of the next layer, where that layer will choose nearly all. A
cache of experts beside them: `cache/`.

Every tier gets the ids as its bank numbers them, -1 for experts of other tiers, which its kernel skips; within a part
the sum runs over a token's choices in order. So a placement gives the same bits every time; two placements differ in
the order of sums, and in rounding where their kernels do.

What was read and sent follows from the choices (`work`), when the pass is over: they lie in host memory then, and
nobody had to wait.
What each tier does is a span of the clock, if it is on (`ledger/timers.py`).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from ...kernels.packed import ExpertBank
from ...loaders.weights.model_weights import TierBanks
from ..devices import streams
from ..devices.device import Device
from ..ledger.pass_bytes import EXPERTS, ROUTING, UNCHOSEN
from ..ledger.passes import CPU_DRAM, D2D, D2H, GPU1_HBM, H2D, LayerWork
from ..ledger.timers import Spans, Timers, wait
from ..placement.placement import Placement, Tier
from .backend import Chosen, Job
from .host_buffers import HostBuffers
from .offload_plan import NONE, OffloadPlan, next_in_ram
from .streaming import Cuts, Ring, by_number, chosen_numbers, no_cuts

F32, I32 = 4, 4  # bytes


class TieredExperts:
    """The experts of all layers on the tiers of a placement, beside a decoder whose home is a GPU (or plays one). cuts:
    as of `Ring`, of the banks in RAM."""

    def __init__(
        self,
        banks: list[TierBanks | None],
        placement: Placement,
        devices: Mapping[Tier, Device],
        host_buffers: HostBuffers,
        offload: OffloadPlan = NONE,
        timers: Timers | None = None,
        cuts: Cuts = no_cuts,
    ) -> None:
        self.banks = banks
        self.cuts = cuts
        self.placement = placement
        self.devices = devices
        self.main = devices[placement.main]
        self.host_buffers = host_buffers
        self.local = [self._tables(layer) for layer in range(len(banks))]
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="headrace-experts")
        self.running: Future[bool] | None = None
        self.offload = offload
        self.timers = Timers() if timers is None else timers
        self.here = self.main.tier.channel
        self.streams = streams.of(self.main)
        self.second = self._second()
        self.ring = self._ring() if offload.buffer_bytes(host_buffers.tokens) and Tier.CPU in placement.tiers else None
        self.numbers = [self._numbers(layer) for layer in range(len(banks))] if self.ring is not None else []
        self.last = -1  # the layer that was submitted last

    def _tables(self, layer: int) -> dict[Tier, Tensor]:
        """By tier, on its device: expert -> its number in the tier's bank, or -1; int32 [E]."""
        tables = {}
        for tier in self.placement.tiers_of(layer):
            numbers = torch.tensor(self.placement.local_ids(layer, tier), dtype=torch.int32)
            tables[tier] = numbers.to(self.devices[tier].place)
        return tables

    def _second(self) -> Spans | None:
        """The spans of the second GPU, if there is one."""
        device = self.devices.get(Tier.GPU1)
        return None if device is None else self.timers.beside(streams.of(device)[0])

    def _ring(self) -> Ring | None:
        """The buffers for copied experts; None if no layer has any in RAM."""
        banks = [layer.banks[Tier.CPU.value] for layer in self.banks if layer and Tier.CPU.value in layer.banks]
        if not banks:
            return None
        largest = max((bank.layout for bank in banks), key=lambda layout: layout.bytes)
        (main, side), piece = self.streams, self.offload.piece
        ops, place = self.main.ops, self.main.place
        among = max(map(len, self.placement.experts))
        return Ring(largest, piece, ops, place, main, side, self.timers, self.here, self.cuts, among)

    def _numbers(self, layer: int) -> Tensor:
        """On the main device: expert -> its number in the bank in RAM, or -1; int32 [E]."""
        return torch.tensor(self.placement.local_ids(layer, Tier.CPU), dtype=torch.int32).to(self.main.place)

    def submit(self, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Job:
        """Starts every tier's part. Tensors are on the main device."""
        self.begin_layer(layer)
        tiers, T = self.placement.tiers_of(layer), len(x_TD)
        in_ram = Tier.CPU in tiers
        is_streamed = in_ram and self.offload.streams(T)
        self.timers.span(self.here)
        if in_ram and not is_streamed:
            work = self.host_buffers.down(layer, x_TD, ids_TK, weights_TK)
            ids = work[1]
            self.running = self.worker.submit(self._on_cpu, layer, *work)
        else:
            ids = self.host_buffers.ids_down(layer, ids_TK)
        if is_streamed:
            self.host_buffers.event.set()
        self.timers.span(D2H)
        parts = [self._on_gpu(tier, layer, x_TD, ids_TK, weights_TK) for tier in tiers if tier is not Tier.CPU]
        unchosen = 0
        if is_streamed:
            part_TD, unchosen = self._streamed(layer, x_TD, ids_TK, ids, weights_TK)
            parts.append(part_TD)
        return Job(parts, Chosen(layer, ids, is_streamed, unchosen, weights_TK))

    def begin_layer(self, layer: int) -> None:
        """Nothing of another layer is under way, nor of another pass."""
        if self.running is not None:  # an error came between submit and collect: its worker may still use the buffers
            self.running.exception()
            self.running = None
        if layer <= self.last and self.ring is not None:  # another pass
            self.ring.forget()
        self.last = layer

    def _streamed(
        self, layer: int, x_TD: Tensor, ids_TK: Tensor, host_TK: Tensor, weights_TK: Tensor
    ) -> tuple[Tensor, int]:
        """The part of all chosen experts in RAM, which are copied to the GPU by number, since the next layer's may be
        there early; and how many came that nobody chose. Waits for the choices."""
        ring, bank = self.ring, self.bank_in_ram(layer)
        assert ring is not None, "copies without buffers"
        self.timers.span(self.here)
        self.host_buffers.event.wait()
        local_TK = self.local[layer][Tier.CPU][host_TK.long()]
        numbers = chosen_numbers(local_TK, bank.experts)
        self.timers.span(wait(H2D))  # what to copy must be known first
        unchosen, y_TD = self._unchosen(layer, numbers), torch.zeros_like(x_TD)
        if numbers:
            places = self.numbers[layer][ids_TK.long()]
            ring.add(y_TD, x_TD, places, weights_TK, bank, by_number(numbers, ring.piece, bank.experts))
        self._prefetch_next(layer, len(numbers))
        return y_TD, unchosen

    def _unchosen(self, layer: int, numbers: list[int]) -> int:
        """How many experts of a layer were copied early and are not among its choices."""
        if self.ring is None:
            return 0
        prefetched = self.ring.fetched(self.bank_in_ram(layer))
        return prefetched - sum(number < prefetched for number in numbers)

    def _prefetch_next(self, layer: int, copied: int) -> None:
        """Starts the first copies of the next layer, if it will choose nearly all of its experts in RAM."""
        if self.ring is not None and self.offload.prefetches(copied, self.placement.count(layer, Tier.CPU)):
            following = next_in_ram(self.placement, layer)
            if following is not None:
                self.ring.fetch(self.bank_in_ram(following))

    def _on_gpu(self, tier: Tier, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """One GPU's part, on that GPU."""
        device = self.devices[tier]
        if device is not self.main:
            self.timers.span(self.here)
            x_TD, ids_TK, weights_TK = (device.put(t) for t in (x_TD, ids_TK, weights_TK))
            self.timers.span(D2D)
        with device.current():
            if self.second is not None and device is not self.main:
                self.second.span(None)
            bank, local_E = self._bank(layer, tier), self.local[layer][tier]
            numbers_E = None if bank.experts == len(local_E) else local_E  # with all there, ids are their numbers
            part_TD: Tensor = device.ops.experts(x_TD, ids_TK, weights_TK, bank, numbers_E)
            if self.second is not None and device is not self.main:
                self.second.span(GPU1_HBM)
            return part_TD

    def _on_cpu(self, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> bool:
        """The CPU's part, in the worker thread; whether there is any."""
        self.host_buffers.event.wait()
        local_TK = self.local[layer][Tier.CPU][ids_TK.long()]
        if not bool((local_TK >= 0).any()):
            return False
        return self._compute(layer, x_TD, local_TK, weights_TK)

    def start_cpu(self, layer: int, x_TD: Tensor, local_TK: Tensor, weights_TK: Tensor) -> None:
        """The worker computes these experts of the bank in RAM, -1 for none; all tensors are there already."""
        self.running = self.worker.submit(self._compute, layer, x_TD, local_TK, weights_TK)

    @torch.inference_mode()
    def _compute(self, layer: int, x_TD: Tensor, local_TK: Tensor, weights_TK: Tensor) -> bool:
        start = time.perf_counter()
        y_TD = self.devices[Tier.CPU].ops.experts(x_TD, local_TK, weights_TK, self.bank_in_ram(layer))
        self.host_buffers.y_TD[: len(y_TD)].copy_(y_TD)
        self.timers.spend(CPU_DRAM, time.perf_counter() - start)
        return True

    def bank_in_ram(self, layer: int) -> ExpertBank:
        """The experts of a layer that lie in RAM."""
        return self._bank(layer, Tier.CPU)

    def _bank(self, layer: int, tier: Tier) -> ExpertBank:
        banks = self.banks[layer]
        assert banks is not None, f"layer {layer} is dense"
        return banks.banks[tier.value]

    def collect(self, job: Job) -> tuple[Tensor, Chosen]:
        """Waits for the CPU's part and adds all parts up on the main device: float32 [tokens, hidden]."""
        self.timers.span(self.here)
        parts = [self.main.put(part) for part in job.parts]
        if self.second is not None:
            self.timers.span(wait(GPU1_HBM))
        if self.running is not None:
            running, self.running = self.running, None
            has_part = running.result()
            self.timers.span(wait(CPU_DRAM))
            if has_part:
                parts.append(self.host_buffers.up(len(job.chosen.ids_TK)))
                self.timers.span(H2D)
        assert parts, "collect without submit"
        y_TD, *others = parts
        for part in others:
            self.main.ops.gated_add_(y_TD, part)
        return y_TD, job.chosen

    # ---- the account

    def work(self, chosen: Chosen) -> LayerWork:
        """What a layer read and sent: of a streamed one its chosen experts in RAM went to the main device, and
        `unchosen` that nobody chose."""
        layer, ids_TK, is_streamed, unchosen = chosen[:4]
        counts, pairs, copied = self._served(layer, ids_TK, is_streamed)
        found: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for tier, count in counts.items():
            found[tier.channel][EXPERTS] = count * self._bank(layer, tier).layout.bytes
        size = copied * self.bank_in_ram(layer).layout.bytes if copied else 0
        if size:
            found[self.here][EXPERTS] = found[self.here].get(EXPERTS, 0) + size
        (T, K), D = ids_TK.shape, self.host_buffers.x_TD.shape[1]
        hidden, routing = T * D * F32, T * K * (I32 + F32)
        if Tier.CPU in counts and not is_streamed:
            found[D2H] = {EXPERTS: hidden, ROUTING: routing}
            found[H2D] = {EXPERTS: hidden if counts[Tier.CPU] else 0}
        else:
            found[D2H] = {ROUTING: T * K * I32}
            found[H2D] = {EXPERTS: size}
        if unchosen:
            found[H2D][UNCHOSEN] = unchosen * self.bank_in_ram(layer).layout.bytes
        if Tier.GPU1 in counts:
            found[D2D] = {EXPERTS: 2 * hidden, ROUTING: routing}
        return LayerWork(layer=layer, tokens=T, bytes=dict(found), pairs=pairs, copied=size, is_streamed=is_streamed)

    def _served(self, layer: int, ids_TK: Tensor, is_streamed: bool) -> tuple[dict[Tier, int], dict[str, int], int]:
        """Of a layer's choices: by tier, the different experts that were computed where they lie; by memory, how many
        choices were served from it; and the different experts in RAM that were computed elsewhere, all or none."""
        if not is_streamed and len(self.local[layer]) == 1:  # all on one tier, as in most layers of most placements
            (owner,) = self.local[layer]
            count = ids_TK.numel() if len(ids_TK) == 1 else len(set(ids_TK.flatten().tolist()))
            return {owner: count}, {owner.channel: ids_TK.numel()}, 0
        if len(ids_TK) == 1:  # one token's are different already
            chosen = sorted(ids_TK.flatten().tolist())
            times = [1] * len(chosen)
        else:
            different, served = ids_TK.unique(return_counts=True)
            chosen, times = different.tolist(), served.tolist()
        counts, copied = dict.fromkeys(self.local[layer], 0), 0
        pairs: defaultdict[str, int] = defaultdict(int)
        for expert, count in zip(chosen, times, strict=True):
            owner = self.placement.experts[layer][expert]
            if owner is Tier.CPU and is_streamed:
                copied += 1
                pairs[self.here] += count
            else:
                counts[owner] += 1
                pairs[owner.channel] += count
        return counts, dict(pairs), copied
