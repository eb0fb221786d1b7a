"""Experts in RAM beside a cache of some in VRAM: a layer's choices are computed where they lie, at the same time.

    x, ids, weights down | choices known: the policy is asked | CPU: what is not in VRAM ............ | up, sum
                                                     GPU: what is there | what was fetched for it |
                                                     link: fetched ... | what comes behind the layer ...

Sums are added up in one order: what was there, what was fetched, the CPU's part. A pass with so many tokens that all of
its experts are copied goes as without a cache (`tiered.py`); its generated tokens are told to the policy behind it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...ledger.pass_bytes import EXPERTS, ROUTING
from ...ledger.passes import CPU_DRAM, D2D, D2H, GPU1_HBM, H2D, LayerWork
from ...ledger.timers import wait
from ...placement.placement import Tier
from ...policies.protocol import Policy
from ..backend import Chosen, Job, Moved
from ..tiered import F32, I32, TieredExperts
from .expert_cache import ExpertCache, Use
from .shared_memory import SharedMemory
from .slots import ABSENT
from .store import Store


class CachedExperts:
    """`tiered`: all experts in RAM, beside a GPU or what plays one. As an `ExpertBackend`."""

    def __init__(self, tiered: TieredExperts, cache: ExpertCache, store: Store | None = None) -> None:
        self.tiered, self.cache, self.store = tiered, cache, store

    def submit(self, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Job:
        """Starts a layer's work on both sides; shapes as of `TieredExperts.submit`."""
        tiered = self.tiered
        if tiered.offload.streams(len(x_TD)):
            job = tiered.submit(layer, x_TD, ids_TK, weights_TK)
            moved = self.cache.behind(self.cache.ask(layer, job.chosen.ids_TK))
            return job._replace(chosen=job.chosen._replace(moved=moved._replace(there=frozenset())))
        tiered.begin_layer(layer)
        tiered.timers.span(tiered.here)
        x, ids, weights = tiered.host_buffers.down(layer, x_TD, ids_TK, weights_TK)
        tiered.timers.span(D2H)
        tiered.host_buffers.event.wait()
        use = self.cache.ask(layer, ids)
        try:
            parts, places, stored = self._parts(layer, use, (x_TD, weights_TK), (x, ids, weights))
        finally:  # also after an error: what the policy said has to become true
            moved = self.cache.behind(use)
        moved = moved._replace(places=places, stored=stored)
        return Job(parts, Chosen(layer, ids, weights_TK=weights_TK, moved=moved))

    def _parts(
        self, layer: int, use: Use, here: tuple[Tensor, Tensor], down: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[list[Tensor], int, frozenset[int]]:
        """Starts all parts; bytes of places that went up, and the experts of the second GPU's store. here: x and
        weights on the main device; down: x, ids and weights in RAM."""
        (x_TD, weights_TK), ids_TK = here, down[1]
        elsewhere_E = use.here if use.fetched is None else torch.maximum(use.here, use.fetched)
        stored_TK = self._in_store(layer, ids_TK, elsewhere_E)
        self._start_cpu(layer, elsewhere_E, stored_TK, down)
        parts = self._on_gpu(layer, use, x_TD, ids_TK, weights_TK)
        places = (len(parts) + (stored_TK is not None)) * ids_TK.nbytes
        if stored_TK is not None:
            parts.append(self._on_store(layer, x_TD, stored_TK, weights_TK))
        return parts, places, _rows_of(ids_TK, stored_TK)

    def _in_store(self, layer: int, ids_TK: Tensor, elsewhere_E: Tensor) -> Tensor | None:
        """The numbers of choices in the second GPU's store that are nowhere nearer, -1 for others; None: there are
        none."""
        if self.store is None:
            return None
        numbers_E = torch.where(elsewhere_E < 0, self.store.numbers[self.cache.number[layer]], ABSENT)
        local_TK = numbers_E[ids_TK.long()]
        return local_TK if bool((local_TK >= 0).any()) else None

    def _on_store(self, layer: int, x_TD: Tensor, local_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """The second GPU's part, there."""
        tiered, store = self.tiered, self.store
        assert store is not None, "a part of no store"
        tiered.timers.span(tiered.here)
        if tiered.second is not None:
            tiered.second.span(None)
        part_TD = store.sum_of(self.cache.number[layer], x_TD, local_TK, weights_TK)
        if tiered.second is not None:
            tiered.second.span(GPU1_HBM)
        tiered.timers.span(D2D)
        return part_TD

    def _start_cpu(
        self, layer: int, elsewhere_E: Tensor, stored_TK: Tensor | None, work: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        """The worker computes what is neither in VRAM nor on its way for this layer, if anything is left."""
        x_TD, ids_TK, weights_TK = work
        local_TK = torch.where(elsewhere_E[ids_TK.long()] < 0, ids_TK, ABSENT)
        if stored_TK is not None:
            local_TK = torch.where(stored_TK < 0, local_TK, ABSENT)
        if bool((local_TK >= 0).any()):
            self.tiered.start_cpu(layer, x_TD, local_TK, weights_TK)

    def _on_gpu(self, layer: int, use: Use, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> list[Tensor]:
        """The sums of what is there, and of what was fetched as soon as it has come."""
        tiered, bank, parts = self.tiered, self.cache.bank(layer), []
        for places, ready in ((use.here, None), (use.fetched, use.ready)):
            if bank is None or places is None:
                continue
            local_TK = places[ids_TK.long()]
            if not bool((local_TK >= 0).any()):
                continue
            if ready is not None:
                tiered.timers.span(tiered.here)
                tiered.streams[0].wait(ready)
                tiered.timers.span(wait(H2D))
            parts.append(tiered.main.ops.experts(x_TD, tiered.main.put(local_TK), weights_TK, bank))
        return parts

    def collect(self, job: Job) -> tuple[Tensor, Chosen]:
        """Waits for the sum of all parts, on the main device: float32 [tokens, hidden]."""
        return self.tiered.collect(job)

    # ---- the account

    def work(self, chosen: Chosen) -> LayerWork:
        """What a layer read and sent."""
        tiered, moved = self.tiered, chosen.moved
        assert moved is not None, "a layer that no cache was asked about"
        if chosen.is_streamed:
            work = tiered.work(chosen)
            if moved.behind:
                work.bytes[H2D][EXPERTS] += moved.behind
            return replace(work, behind=moved.behind)
        size, pairs = tiered.bank_in_ram(chosen.layer).layout.bytes, self._pairs(chosen, moved)
        experts = {tier: len(of) for tier, of in pairs.items()}
        (T, K), D = chosen.ids_TK.shape, tiered.host_buffers.x_TD.shape[1]
        hidden, copied = T * D * F32, moved.fetched * size
        up = copied + moved.behind + (hidden if CPU_DRAM in experts else 0)
        found: dict[str, dict[str, int]] = {tier: {EXPERTS: count * size} for tier, count in experts.items()}
        found[D2H] = {EXPERTS: hidden, ROUTING: T * K * (I32 + F32)}
        if moved.stored:
            found[D2D] = {EXPERTS: 2 * hidden, ROUTING: T * K * F32 + moved.across}
        found[H2D] = {EXPERTS: up, ROUTING: moved.places}
        served = {tier: sum(of.values()) for tier, of in pairs.items()}
        return LayerWork(layer=chosen.layer, tokens=T, bytes=found, pairs=served, copied=copied,
                         behind=moved.behind)  # fmt: skip

    def _pairs(self, chosen: Chosen, moved: Moved) -> dict[str, dict[int, int]]:
        """By memory the experts that were read there, and how many choices each served."""
        pairs: defaultdict[str, dict[int, int]] = defaultdict(dict)
        different, counts = chosen.ids_TK.unique(return_counts=True)
        for expert, count in zip(different.tolist(), counts.tolist(), strict=True):
            memory = GPU1_HBM if expert in moved.stored else CPU_DRAM
            pairs[self.tiered.here if expert in moved.there else memory][expert] = count
        return dict(pairs)


def tiers_of(experts: TieredExperts | CachedExperts) -> TieredExperts:
    """The experts on their tiers, those behind a cache too."""
    return experts.tiered if isinstance(experts, CachedExperts) else experts


def _rows_of(ids_TK: Tensor, local_TK: Tensor | None) -> frozenset[int]:
    """The experts among choices that have a number."""
    return frozenset() if local_TK is None else frozenset(ids_TK[local_TK >= 0].tolist())


def cached(
    tiered: TieredExperts, policy: Policy, budget: int, why: Sequence[str] = (), shared: SharedMemory | None = None
) -> CachedExperts:
    """A cache of so many bytes on the main device, beside experts that are all in RAM. why: the policy was chosen.
    shared: the cache is there, with pages of keys and values."""
    layers = [layer for layer, banks in enumerate(tiered.banks) if banks is not None]
    banks = [tiered.bank_in_ram(layer) for layer in layers]
    layouts, (main, side) = [bank.layout for bank in banks], tiered.streams
    spans = None if tiered.timers.main is None else tiered.timers.beside(side)
    cache = ExpertCache(policy, budget, layers, layouts, banks, tiered.main.place, (main, side), spans, shared)
    cache.why = tuple(why)
    stored, second = cache.residents.stored, tiered.devices.get(Tier.GPU1)
    assert second is not None or not any(stored), "a store without a second GPU"
    return CachedExperts(tiered, cache, Store(stored, banks, second) if second is not None and any(stored) else None)
