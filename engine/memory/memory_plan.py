"""What lies where, and whether it fits: from options, a model and devices to a placement, a cache, and bytes by tier.

Exact sizes of tensors, the cache for the context that was asked for, the buffers of a pass; `devices/device.py` has
taken the reserve off. Everything is decided and checked here, before memory is taken on any tier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...errors import MemoryNeeded, OptionError
from ...kernels import ExpertLayout
from ...kernels.cpu.mailbox import mailbox_bytes
from ...loaders.memory import RESERVE
from ...loaders.weights.checkpoint import SMALLER, Checkpoint
from ...loaders.weights.model_weights import ModelWeights, Where, allocate
from ..bandwidth_model.profile import Profile
from ..config import EngineConfig
from ..devices.device import Device
from ..experts import offload_plan
from ..experts.offload_plan import NONE, OffloadPlan
from ..ledger.pass_bytes import bytes_per_token, layer_dense_bytes
from ..model.batch import sizes_up_to
from ..model.inputs import largest_pass
from ..model.kv_cache import PAGE, pages_for
from ..placement import placement as placing
from ..placement import placement_file
from ..placement.placement import Placement, Tier
from ..units import size
from . import kv_budget
from .kv_budget import Room

DEFAULT_CONTEXT = 4096  # beside a GPU, where more cache is fewer experts, and nobody said
CACHE_SHARE = 0.1  # of a GPU: what the caches of further sequences may take before experts
STREAM = "stream buffers"  # what is needed for experts that are copied to a GPU
DEVICE_CHUNK = 1 << 29  # bytes of experts' products at a time on a GPU (SCRATCH in kernels/gpu/experts.py)

Needs = dict[Tier, dict[str, int]]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes of a model's weights: all but embedding and routed experts, the embedding if it is not the head, the
    routed experts by layer; and how many experts a layer has."""

    common: int
    embedding: int
    experts: tuple[int, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What was decided. `needs`: bytes by tier and what they are for. `offload`: which experts in RAM a GPU
    computes."""

    placement: Placement
    room: Room
    needs: Needs
    table: Tier  # of the embedding
    sizes: Sizes
    offload: OffloadPlan = NONE
    spare_pages: int = 0  # of the cache, beyond those of the room: for rows of a graph without a sequence

    @property
    def bytes_in_ram(self) -> list[int]:
        """Bytes of experts in RAM, by layer."""
        rows = zip(self.sizes.experts, self.placement.experts, strict=True)
        return [size // max(1, len(row)) * row.count(Tier.CPU) for size, row in rows]

    def where(self, devices: Mapping[Tier, Device]) -> Where | None:
        """Where the weights are to be allocated; None where all is RAM and nothing is split."""
        if self.placement.main is Tier.CPU:
            return None
        return Where(
            common=str(devices[self.placement.main].place),
            embed=str(devices[self.table].place),
            experts=[[tier.value for tier in row] for row in self.placement.experts],
            tiers={tier.value: str(device.place) for tier, device in devices.items()},
        )


def sizes_of(checkpoint: Checkpoint) -> Sizes:
    """The sizes of a model that is not loaded."""
    weights = allocate(checkpoint.spec, checkpoint.formats, "meta")
    banks = [layer.experts for layer in weights.layers]
    return Sizes(
        common=sum(map(layer_dense_bytes, weights.layers)) + weights.final_norm.nbytes + weights.head.nbytes,
        embedding=_embedding(weights),
        experts=tuple(0 if bank is None else bank.nbytes for bank in banks),
        counts=tuple(0 if bank is None else bank.experts for bank in banks),
    )


def _embedding(weights: ModelWeights) -> int:
    return 0 if weights.head is weights.embed else weights.embed.nbytes


def fit(
    config: EngineConfig,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    devices: Mapping[Tier, Device],
    profile: Profile | None = None,
    graphs: bool = False,
) -> Fit:
    """Decides; `profile`: the rates of this machine, if it was measured; `graphs`: decode steps may become graphs.

    Raises OptionError for what the model or the machine does not have, MemoryNeeded for a tier that is too small, with
    what it would have to hold.
    """
    sizes = sizes_of(checkpoint)
    if len(devices) == 1:
        room = kv_budget.plan(config, checkpoint, dtype)
        placement = placing.all_on(Tier.CPU, sizes.counts)
        needs = _needs(placement, sizes, room, 0, Tier.CPU)
        return Fit(placement=placement, room=room, needs=needs, table=Tier.CPU, sizes=sizes)
    plan = _Plan(config, checkpoint, dtype, devices, sizes, profile, graphs)
    found = plan.decide()
    _check(found, devices)
    return found


class _Plan:
    """One decision for a GPU (or what plays one), or two."""

    def __init__(
        self,
        config: EngineConfig,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        devices: Mapping[Tier, Device],
        sizes: Sizes,
        profile: Profile | None,
        graphs: bool,
    ) -> None:
        self.config = config
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.devices = devices
        self.sizes = sizes
        spec = checkpoint.spec
        self.work = kv_budget.work_bytes(spec, config.prefill_chunk, config.max_sequences, DEVICE_CHUNK)
        self.page = PAGE * bytes_per_token(spec, dtype)
        layout = ExpertLayout(format=checkpoint.formats.experts, hidden=spec.hidden, width=spec.moe.width)
        self.offload = offload_plan.plan(config, spec, layout, devices, profile)
        self.buffers = self.offload.buffer_bytes(max(config.prefill_chunk, config.max_sequences))
        self.mailbox = 0
        self.spare_pages = int(graphs)
        if graphs:  # a page for rows without a sequence, and buffers that a graph keeps for itself
            sizes_B = sizes_up_to(config.max_sequences)
            self.work += self.page + kv_budget.work_bytes(spec, sizes_B[-1], sizes_B[-1])
            self.mailbox = mailbox_bytes(spec.moe_layers, spec.moe.top_k, spec.hidden, sizes_B)

    def decide(self) -> Fit:
        policy = self.config.policy
        if policy.kind == "auto":
            return self._auto()
        if policy.kind == "file":
            assert policy.file is not None
            placement = placement_file.read(policy.file, self.sizes.counts, list(self.devices))
        else:
            layers = len(self.sizes.counts)
            if policy.layers is not None and policy.layers > layers:
                raise OptionError(f"n_cpu_moe is {policy.layers}, this model has {layers} layers: give 0 to {layers}")
            placement = placing.n_cpu_moe(self.sizes.counts, layers if policy.layers is None else policy.layers)
        if self.config.shares is not None:
            placement = placing.split(placement, self.sizes.experts, self.config.shares)
        return self._placed(placement)

    def _placed(self, placement: Placement) -> Fit:
        """A placement that was asked for: the cache may take of what is left as on a CPU."""
        table = _table(placement, self.checkpoint.spec.tied_head)
        taken = sum(_weights(placement, self.sizes, placement.main, table).values()) + self._buffers(placement)
        free = self.devices[placement.main].free
        room = kv_budget.plan(self.config, self.checkpoint, self.dtype, free, taken, self.work)
        return self._fit(placement, room)

    def _auto(self) -> Fit:
        """The cache first, for one sequence of the context, and for more within its share; then experts as they fit."""
        spec, main = self.checkpoint.spec, self.devices[Tier.GPU0]
        context = self.config.max_context or min(spec.context, DEFAULT_CONTEXT)
        if context > spec.context:
            raise OptionError(f"max_context is {context}, this model allows at most {spec.context} tokens")
        one, shared = pages_for(context), int(main.free * CACHE_SHARE) // self.page
        pages = max(one, min(one * self.config.max_sequences, shared))
        room = Room(pages, context, pages * self.page, self.work)
        left = main.free - self.sizes.common - room.kv_bytes - self.work
        placement = self._filled(left)
        if self._buffers(placement):
            placement = self._filled(left - self.buffers)
        return self._fit(placement, room)

    def _filled(self, left: int) -> Placement:
        """As many experts in VRAM as fit into so many bytes of the first GPU, and the second one."""
        total = sum(self.sizes.experts)
        if self.config.shares is None:
            # With all experts in VRAM the embedding goes there too; that may be what does not fit.
            fits_whole = total + self.sizes.embedding <= left
            room_for_experts = left if fits_whole or total > left else left - self.sizes.embedding
            return placing.auto(self.sizes.counts, self.sizes.experts, room_for_experts)
        rooms = {Tier.GPU0: left - self.sizes.embedding, Tier.GPU1: self.devices[Tier.GPU1].free - self.work}
        return placing.auto_split(self.sizes.counts, self.sizes.experts, rooms, self.config.shares)

    def _buffers(self, placement: Placement) -> int:
        """Bytes of the buffers for copied experts: none where none lie in RAM."""
        return self.buffers if any(Tier.CPU in row for row in placement.experts) else 0

    def _fit(self, placement: Placement, room: Room) -> Fit:
        spec = self.checkpoint.spec
        tokens = max(self.config.prefill_chunk, self.config.max_sequences)
        per_token = 8 * spec.hidden + 4 * spec.moe.top_k * (1 + spec.layers)
        table = _table(placement, spec.tied_head)
        rows = spec.hidden if table is not placement.main else 0  # of the embedding go up instead of token ids
        inputs = largest_pass(tokens, self.config.max_sequences, room.max_context, rows).nbytes
        needs = _needs(placement, self.sizes, room, tokens * per_token + inputs + self.mailbox, table)
        if "experts" in needs[Tier.CPU]:
            needs[Tier.CPU]["buffers of a pass"] = kv_budget.work_bytes(spec, tokens, 1)
        buffers = self._buffers(placement)
        if buffers:
            needs[placement.main][STREAM] = buffers
        return Fit(
            placement=placement,
            room=room,
            needs=needs,
            table=table,
            sizes=self.sizes,
            offload=self.offload,
            spare_pages=self.spare_pages,
        )


def _table(placement: Placement, is_head: bool) -> Tier:
    """Where the embedding lies: in RAM as long as experts do, for a token reads one row of it; with the head, if it is
    that."""
    return Tier.CPU if Tier.CPU in placement.tiers and not is_head else placement.main


def _weights(placement: Placement, sizes: Sizes, tier: Tier, table: Tier) -> dict[str, int]:
    """Bytes of weights on a tier."""
    return {
        "common weights": sizes.common if placement.main is tier else 0,
        "embedding": sizes.embedding if table is tier else 0,
        "experts": placing.expert_bytes(placement, sizes.experts, tier),
    }


def _needs(placement: Placement, sizes: Sizes, room: Room, handoff: int, table: Tier) -> Needs:
    """What every tier holds, the buffers of the hand-off in RAM included."""
    found: Needs = {}
    for tier in dict.fromkeys((*placement.tiers, Tier.CPU)):
        needs = _weights(placement, sizes, tier, table)
        if tier is placement.main:
            needs["KV cache"] = room.kv_bytes
        if tier is not Tier.CPU or placement.main is Tier.CPU:
            needs["buffers of a pass"] = room.work_bytes
        if tier is Tier.CPU and handoff:
            needs["hand-off"] = handoff
        found[tier] = {what: needed for what, needed in needs.items() if needed}
    return found


def _check(found: Fit, devices: Mapping[Tier, Device]) -> None:
    """Raises MemoryNeeded for the first memory that is too small. What plays a GPU's part is RAM, too."""
    for tier, needs in found.needs.items():
        limit = devices[tier].free * (1 - RESERVE) if tier is Tier.CPU else devices[tier].free
        _require(needs, limit, f"{tier.value} ({devices[tier].name})", found.placement)
    in_ram = [needs for tier, needs in found.needs.items() if not devices[tier].is_cuda]
    together: dict[str, int] = {}
    for needs in in_ram:
        for what, needed in needs.items():
            together[what] = together.get(what, 0) + needed
    _require(together, devices[Tier.CPU].free * (1 - RESERVE), "RAM", found.placement)


def _require(needs: Mapping[str, int], limit: float, what: str, placement: Placement) -> None:
    total = sum(needs.values())
    if total <= limit:
        return
    parts = ", ".join(f"{name} {size(needed)}" for name, needed in needs.items())
    fewer = "place fewer experts there (--n-cpu-moe auto), " if what.startswith("gpu") and "experts" in needs else ""
    fewer += "copy none there (--stream-from never --split 0), " if STREAM in needs else ""
    raise MemoryNeeded(
        f"placement {placement.name}: {what} would hold {size(total)} ({parts}), {size(max(0.0, limit))} can be taken: "
        f"{fewer}lower --max-context, or {SMALLER}"
    )
