"""What lies here where other machines hold experts, or whole layers: in RAM alone, or with a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ...errors import OptionError
from ...loaders.weights.by_expert.stored import StoredExperts
from ..experts.disk import rows, staging
from ..placement import placement as placing
from ..placement import placement_file
from ..placement.placement import Placement, Tier
from ..placement.tier_memory import of_free, of_needs, together
from . import required
from .kv_budget import KVBudget

if TYPE_CHECKING:
    from .deciding import Planning
    from .memory_plan import MemoryPlan


def decide(plan: Planning) -> MemoryPlan:
    """What was decided. Raises OptionError, MemoryNeeded."""
    if not plan.checkpoint.entries:
        what = "layers" if plan.config.split_by == "layers" else "experts"
        raise OptionError(f"hosts read {what} from a model's files, and random weights have none: no --hosts")
    if plan.config.split_by == "layers":
        return _on_layers(plan)
    return _on_hosts(plan) if len(plan.devices) == 1 else _beside_a_gpu(plan)


def _on_hosts(plan: Planning) -> MemoryPlan:
    """Other machines hold experts: RAM holds everything else, and has room for some of them."""
    spec, storage = plan.spec, plan.storage
    stored = StoredExperts(plan.checkpoint)
    plan.buffers = 0 if stored.is_straight else staging.nbytes(stored.layouts, False)
    plan.work += 2 * rows.nbytes(plan.tokens, spec.moe.top_k, spec.hidden)
    placement, free = placing.on_hosts(plan.counts, "hosts"), int(of_free(plan.devices[Tier.CPU].free))
    room = plan.budget_of(free)
    left = free - storage.common - storage.held - plan.mtp - room.kv_bytes - plan.work - plan.buffers
    found = replace(plan.fit(placement, room), stored=stored, room=max(0, left))
    required.require(found.memory[Tier.CPU], "RAM", placement)
    return found


def _beside_a_gpu(plan: Planning) -> MemoryPlan:
    """The same with a GPU that has all else, and some of the experts; RAM has room for some, too."""
    spec = plan.spec
    stored, gpu = StoredExperts(plan.checkpoint), plan.devices[Tier.GPU0]
    layouts = stored.layouts
    plan.work = plan.gpu_work(layouts)
    plan.rows = 2 * rows.nbytes(plan.tokens, spec.moe.top_k, spec.hidden)
    plan.rows += 0 if stored.is_straight else staging.nbytes(layouts, False)
    found = plan.fit(*_in_vram(plan))
    if Tier.NET not in found.placement.tiers:
        raise OptionError("the GPU holds all experts, and leaves hosts none: leave out --hosts")
    ram, in_vram = found.memory[Tier.CPU], found.memory[Tier.GPU0]
    required.require(in_vram, f"{Tier.GPU0.value} ({gpu.name})", found.placement)
    in_ram = [ram, *([] if gpu.is_cuda else [in_vram])]
    free = of_free(plan.devices[Tier.CPU].free)
    required.require(together(in_ram, free), "RAM", found.placement)
    left = free - sum(one.total for one in in_ram)
    return replace(found, stored=stored, room=max(0, int(left)))


def _in_vram(plan: Planning) -> tuple[Placement, KVBudget]:
    """Which experts a coordinator's GPU has beside hosts: by a file, as many as fit with placement auto, else none;
    and the cache of keys and values."""
    asked, (room, left) = plan.config.asked_placement, plan.room()
    if asked.file is not None:
        return placement_file.read_in_vram(asked.file, plan.counts), room
    if asked.kind == "auto":
        table = plan.storage.held if plan.spec.tied_head else 0
        return placing.beside_hosts(plan.counts, plan.sizes, left - table), room
    return placing.on_hosts(plan.counts, "hosts", Tier.GPU0), room


def _on_layers(plan: Planning) -> MemoryPlan:
    """Other machines hold layers with their cache: RAM holds what is outside of layers, and has room for some."""
    free = int(of_free(plan.devices[Tier.CPU].free))
    placement, budget = placing.all_on(Tier.CPU, plan.counts), plan.budget_of(free)
    outside = round(plan.storage.outside_in.total)
    needs = {"embedding": plan.storage.held, "head": outside, "buffers of a pass": plan.work}
    memory = {Tier.CPU: of_needs(needs, free)}
    found = replace(plan.fit(placement, budget), memory=memory, room=max(0, free - sum(needs.values())))
    required.require(memory[Tier.CPU], "RAM", placement)
    return found
