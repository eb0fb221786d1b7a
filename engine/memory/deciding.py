"""What lies where, and whether it fits: from options, a model and devices to a placement, a cache, and bytes by tier.

Exact sizes of tensors, the cache for the context that was asked for, the buffers of a pass; `devices/device.py` has
taken the reserve off. Everything is decided and checked here, before memory is taken on any tier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...errors import OptionError
from ...kernels.cpu.mailbox import mailbox_bytes
from ...kernels.formats import ExpertLayout, KVFormat
from ...kernels.scratch import GPU_EXPERT_BYTES
from ...loaders.quants.by_format import ByFormat
from ...loaders.spec import ModelSpec
from ...loaders.weights.by_expert.stored import StoredExperts
from ...loaders.weights.checkpoint import Checkpoint
from ...loaders.weights.model_weights import Formats
from ..bandwidth_model.profile import Profile
from ..config import EngineConfig
from ..devices.device import Device
from ..experts import offload_plan
from ..experts.cache.shared_memory import moving
from ..experts.disk import rows, staging
from ..experts.offload_plan import NONE
from ..generation.schedule.state_slots import StateSlots
from ..ledger import in_formats
from ..model.batch import sizes_up_to
from ..model.inputs import largest_pass
from ..placement import placement as placing
from ..placement import placement_file
from ..placement.placement import Placement, Tier
from ..placement.tier_memory import TierMemory, of_free, of_needs, together
from ..planning.storage import LayerBytes, Storage
from . import beside_hosts, kv_budget, mtp_rows, required, sharing
from .kv_budget import KVBudget, PageBytes
from .memory_plan import MemoryPlan
from .required import EXPERT_CACHE, MTP, READING, STREAM

DEFAULT_CONTEXT = 4096  # beside a GPU, and of experts on a disk, where more cache is fewer experts, and nobody said
CACHE_SHARE = 0.1  # of that memory: what the caches of further sequences may take before experts
PAGES_SHARE = 0.5  # the same of memory that experts have back when pages are not needed


def storage_of(spec: ModelSpec, formats: Formats) -> Storage:
    """The bytes of a model that is not loaded, as the engine packs it."""
    found, names = in_formats.of_model(spec, formats), formats.names
    outside = ByFormat.sum([found.final_norm, found.head])
    layers = tuple(
        LayerBytes(
            common_in=layer.common, shared_in=layer.shared, expert_in=layer.expert, experts=layer.experts,
        )
        for layer in found.layers
    )  # fmt: skip
    experts = sum(layer.routed for layer in layers)
    held = round(found.embedding.total + found.tables.total)
    common = sum(layer.common for layer in layers) + round(outside.total)
    return Storage(
        groups={"common": common, "experts": experts, "embedding": held},
        layers=layers,
        outside_in=outside,
        head_in=found.head,
        row_in=found.row,
        held=held,
        quant=names["experts"],
        expert_format=names["experts"],
        dense_format=names["dense"],
    )


def plan_memory(
    config: EngineConfig,
    checkpoint: Checkpoint,
    kv_format: KVFormat,
    devices: Mapping[Tier, Device],
    profile: Profile | None = None,
    graphs: bool = False,
) -> MemoryPlan:
    """Decides; `profile`: the rates of this machine, if it was measured; `graphs`: decode steps may become graphs.

    Raises OptionError for what the model or the machine does not have, MemoryNeeded for a tier that is too small, with
    what it would have to hold.
    """
    plan = Planning(config, checkpoint, kv_format, devices)
    if config.hosts is not None:
        return beside_hosts.decide(plan)
    if config.asked_placement.kind == "disk":
        return plan.on_disk()
    if len(devices) == 1:
        return plan.placed(placing.all_on(Tier.CPU, plan.counts))
    found = plan.beside_a_gpu(profile, graphs)
    required.check(found.placement, found.memory, devices)
    return found


class Planning:
    """One decision for a CPU, or for a GPU (or what plays one), or two."""

    def __init__(
        self, config: EngineConfig, checkpoint: Checkpoint, kv_format: KVFormat, devices: Mapping[Tier, Device]
    ) -> None:
        self.config, self.checkpoint, self.devices = config, checkpoint, devices
        self.spec = checkpoint.spec
        self.storage = storage_of(self.spec, checkpoint.formats)
        self.counts, self.sizes = self.storage.experts_by_layer, self.storage.routed_by_layer
        self.tokens = max(config.prefill_chunk, config.max_sequences)
        self.format = kv_format
        self.cache_pages = PageBytes(self.spec, kv_format, self.tokens)
        self.states = 4 * self.spec.state_elements * StateSlots.count(config.max_sequences)
        self.work = self.states + kv_budget.work_bytes(self.spec, config.prefill_chunk, config.max_sequences)
        self.work += mtp_rows.nbytes(self.spec, config.max_sequences)
        self.mtp = mtp_rows.weight_bytes(self.spec, checkpoint.formats)
        self.offload, self.buffers, self.mailbox, self.spare_pages, self.rows = NONE, 0, 0, 0, 0
        self.cache, self.moving = 0, 0  # bytes of the cache of experts, and besides

    def on_disk(self) -> MemoryPlan:
        """Experts stay in the file: RAM holds everything else, and of them as many as what is left of it holds."""
        spec, storage = self.spec, self.storage
        if not self.checkpoint.entries:
            raise OptionError("--placement disk reads experts from a model's files, and random weights have none")
        stored = StoredExperts(self.checkpoint)
        self.buffers = staging.nbytes(stored.layouts, stored.is_straight)
        self.rows = rows.nbytes(self.tokens, spec.moe.top_k, spec.hidden)
        if Tier.GPU0 in self.devices:
            return replace(self._on_disk_beside_a_gpu(), stored=stored)
        self.work += self.rows
        placement, free = placing.on_disk(self.counts), int(of_free(self.devices[Tier.CPU].free))
        room = self.budget_of(free)
        left = free - storage.common - storage.held - self.mtp - room.kv_bytes - self.work - self.buffers
        self._take_cache(left)
        found = replace(self.fit(placement, room), stored=stored)
        required.require(found.memory[Tier.CPU], "RAM", placement)
        return found

    def _on_disk_beside_a_gpu(self) -> MemoryPlan:
        """All else on the GPU, but the embedding; RAM has what is left of it for experts."""
        placement, gpu = placing.on_disk(self.counts, Tier.GPU0), self.devices[Tier.GPU0]
        found = self.placed(placement)
        ram, in_vram = found.memory[Tier.CPU], found.memory[Tier.GPU0]
        required.require(in_vram, f"{Tier.GPU0.value} ({gpu.name})", placement)
        left = (ram.available or 0) - ram.total - (0 if gpu.is_cuda else in_vram.total)
        self._take_cache(int(left))
        found = self.fit(placement, found.kv_budget)
        in_ram = [found.memory[Tier.CPU], *([] if gpu.is_cuda else [in_vram])]
        required.require(together(in_ram, of_free(self.devices[Tier.CPU].free)), "RAM", placement)
        return found

    def beside_a_gpu(self, profile: Profile | None, graphs: bool) -> MemoryPlan:
        """What copies and graphs need is added up, then experts are placed."""
        config, spec = self.config, self.spec
        layouts = [self.checkpoint.formats.layout(spec, i) for i, is_moe in enumerate(spec.is_moe) if is_moe]
        sizes_B = sizes_up_to(config.max_sequences) if graphs else []
        self.work = self.gpu_work(layouts, sizes_B)
        self.offload = offload_plan.plan(config, spec, layouts, self.devices, profile)
        self.buffers = self.offload.buffer_bytes(self.tokens)
        self.spare_pages = int(graphs)
        if graphs:  # a page for rows without a sequence, and buffers that a graph keeps for itself
            self.work += self.cache_pages.page + kv_budget.work_bytes(spec, sizes_B[-1], sizes_B[-1])
            self.mailbox = mailbox_bytes(spec.moe_layers, spec.moe.top_k, spec.hidden, sizes_B)
        if config.policy is not None:
            return self._cached()
        return self._auto() if config.asked_placement.kind == "auto" else self._asked()

    def gpu_work(self, layouts: Sequence[ExpertLayout], sizes_B: Sequence[int] = ()) -> int:
        """Bytes of states and of the buffers of a pass on a GPU. layouts: of layers with experts; sizes_B: of captured
        batches."""
        config, spec = self.config, self.spec
        work = kv_budget.work_bytes(spec, config.prefill_chunk, config.max_sequences, GPU_EXPERT_BYTES)
        work += kv_budget.unpacked_bytes(spec, layouts, config.prefill_chunk)
        return self.states + work + mtp_rows.nbytes(spec, config.max_sequences, sizes_B)

    def _asked(self) -> MemoryPlan:
        """The placement that was asked for."""
        policy, layers = self.config.asked_placement, len(self.counts)
        if policy.file is not None:
            placement = placement_file.read(policy.file, self.counts, list(self.devices))
        else:
            if policy.layers is not None and policy.layers > layers:
                raise OptionError(f"n_cpu_moe is {policy.layers}, this model has {layers} layers: give 0 to {layers}")
            placement = placing.n_cpu_moe(self.counts, layers if policy.layers is None else policy.layers)
        if self.config.shares is not None:
            placement = placing.split(placement, self.sizes, self.config.shares)
        return self.placed(placement)

    def placed(self, placement: Placement) -> MemoryPlan:
        """A placement with as much cache as may be taken of what it leaves."""
        weights = self._weights(placement, placement.main, self._table(placement))
        left = self.devices[placement.main].free - sum(weights.values()) - self._buffers(placement) - self.work
        return self.fit(placement, kv_budget.plan(self.config, self.spec, self.cache_pages, left, self.work))

    def _cached(self) -> MemoryPlan:
        """All experts in RAM, and places for some of them in what the cache of keys and values leaves of VRAM."""
        placement, (room, left) = placing.n_cpu_moe(self.counts, len(self.counts)), self.room()
        besides = self._buffers(placement) + (self.storage.held if self._table(placement) is Tier.GPU0 else 0)
        self._take_cache(left - besides)
        found = self.fit(placement, room)
        if self.config.cache_bytes(sum(self.sizes)) is not None or self.cache == sum(self.sizes):
            return found
        return self._shared(found, left - besides + room.kv_bytes)

    def _shared(self, found: MemoryPlan, room: int) -> MemoryPlan:
        """The same where pages and experts share so many bytes: then more sequences may have pages, since they take
        them from experts only as long as they need them."""
        budget, sizes = self.budget_of(room, PAGES_SHARE), self._expert_sizes
        most = sum(self.sizes) + moving(1, sizes)
        cache = max(0, min(room - budget.kv_bytes, most))
        what = sharing.share(self.spec, self.format, sizes, budget, self.spare_pages, cache)
        if isinstance(what, str):
            return replace(found, not_shared=what)
        self.cache, self.moving = cache, 0
        return replace(self.fit(found.placement, budget), shared=what)

    @property
    def _expert_sizes(self) -> tuple[int, ...]:
        """Of a model's experts, each once."""
        layouts = (self.checkpoint.formats.layout(self.spec, i) for i, is_moe in enumerate(self.spec.is_moe) if is_moe)
        return tuple(sorted({layout.bytes for layout in layouts}))

    def _take_cache(self, left: int) -> None:
        """Bytes of a cache of experts: as asked, else of so many that are left what all experts take."""
        experts, sizes = sum(self.sizes), self._expert_sizes
        asked = self.config.cache_bytes(experts)
        self.cache = max(0, min(left - moving(left, sizes), experts)) if asked is None else asked
        self.moving = moving(min(self.cache, experts), sizes)

    def room(self) -> tuple[KVBudget, int]:
        """The cache of keys and values, for one sequence of the context, and for more within its share; and the bytes
        that it leaves for experts."""
        main = self.devices[Tier.GPU0]
        room = self.budget_of(main.free)
        return room, main.free - self.storage.common - self.mtp - room.kv_bytes - self.work

    def budget_of(self, free: int, share: float = CACHE_SHARE) -> KVBudget:
        """The cache of keys and values where experts take what it leaves: of one sequence, of more within a share."""
        kv_budget.check_context(self.config.max_context, self.spec)
        context = self.config.max_context or min(self.spec.context, DEFAULT_CONTEXT)
        return self.cache_pages.budget(context, self.config.max_sequences, free * share, self.work)

    def _auto(self) -> MemoryPlan:
        """The cache first, then experts as they fit."""
        room, left = self.room()
        placement = self._filled(left)
        if self._buffers(placement):
            placement = self._filled(left - self.buffers)
        return self.fit(placement, room)

    def _filled(self, left: int) -> Placement:
        """As many experts in VRAM as fit into so many bytes of the first GPU, and the second one."""
        total, embedding = sum(self.sizes), self.storage.held
        if self.config.shares is None:
            # With all experts in VRAM the embedding goes there too; that may be what does not fit.
            fits_whole = total + embedding <= left
            return placing.auto(self.counts, self.sizes, left if fits_whole or total > left else left - embedding)
        rooms = {Tier.GPU0: left - embedding, Tier.GPU1: self.devices[Tier.GPU1].free - self.work}
        return placing.auto_split(self.counts, self.sizes, rooms, self.config.shares)

    def _buffers(self, placement: Placement) -> int:
        """Bytes of the buffers for copied experts: none where none lie in RAM."""
        return self.buffers if any(Tier.CPU in row for row in placement.experts) else 0

    def _table(self, placement: Placement) -> Tier:
        """Where the embedding lies: in RAM as long as experts do, for a token reads one row of it; with the head, if
        it is that."""
        is_outside = any(tier in placement.tiers for tier in (Tier.CPU, Tier.DISK, Tier.NET))
        return Tier.CPU if is_outside and not self.spec.tied_head else placement.main

    def _weights(self, placement: Placement, tier: Tier, table: Tier) -> dict[str, int]:
        """Bytes of weights on a tier."""
        main = placement.main
        return {
            "common weights": self.storage.common_on(tier, [main] * len(self.counts), main),
            "embedding": self.storage.held if table is tier else 0,
            "experts": placing.expert_bytes(placement, self.sizes, tier),
            **({MTP: self.mtp} if self.mtp and tier is main else {}),
        }

    def fit(self, placement: Placement, room: KVBudget) -> MemoryPlan:
        """What every tier will hold; of RAM as much as is free may be taken, less what is not ours."""
        table = self._table(placement)
        memory: dict[Tier, TierMemory] = {}
        stores = () if self.config.second_vram is None else (Tier.GPU1,)
        for tier in dict.fromkeys((*placement.tiers, *stores, Tier.CPU)):
            if tier in (Tier.DISK, Tier.NET):
                memory[tier] = of_needs({"experts": placing.expert_bytes(placement, self.sizes, tier)}, None)
                continue
            free = self.devices[tier].free
            needs = self._needs(placement, room, tier, table)
            memory[tier] = of_needs(needs, of_free(free) if tier is Tier.CPU else free)
        return MemoryPlan(
            placement=placement,
            kv_budget=room,
            memory=memory,
            table=table,
            experts=self.sizes,
            offload=self.offload,
            spare_pages=self.spare_pages,
            expert_cache=self.cache,
        )

    def _needs(self, placement: Placement, room: KVBudget, tier: Tier, table: Tier) -> dict[str, int]:
        """What a tier holds, by what it is for; in RAM beside a GPU the buffers of the hand-off."""
        spec, main = self.spec, placement.main
        needs = self._weights(placement, tier, table)
        if tier is main:
            needs["KV cache"] = room.kv_bytes
        if tier is not Tier.CPU or main is Tier.CPU:
            needs["buffers of a pass"] = room.work_bytes
        else:
            rows = spec.hidden if table is not main else 0  # of the embedding go up instead of token ids
            has_states = spec.state_elements > 0
            sizes = self.tokens, self.config.max_sequences, room.max_context, rows, has_states, len(room.windows)
            per_token = 8 * spec.hidden + 4 * spec.moe.top_k * (1 + len(spec.layers))
            needs["hand-off"] = self.tokens * per_token + largest_pass(*sizes).nbytes + self.mailbox
            has_experts = needs["experts"] or Tier.DISK in placement.tiers or Tier.NET in placement.tiers
            needs["buffers of a pass"] = self.rows + (kv_budget.work_bytes(spec, self.tokens, 1) if has_experts else 0)
        if tier is Tier.GPU1 and self.config.second_vram is not None:
            needs["stored experts"] = int(self.config.second_vram * 1e9)
        if tier is main:
            needs[STREAM] = self._buffers(placement)
        if tier is (Tier.CPU if Tier.DISK in placement.tiers else main):
            needs[EXPERT_CACHE] = self.cache + self.moving
            needs[READING] = self.buffers if tier is Tier.CPU else 0
        return needs
