"""What was decided for the memory of a run: what lies where, and how many bytes of what every tier will hold.

`deciding.py` makes it, before memory is taken on any tier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...loaders.weights.by_expert.stored import StoredExperts
from ...loaders.weights.model_weights import Where
from ..devices.device import Device
from ..experts.cache.shared_memory import SharedRoom
from ..experts.offload_plan import NONE, OffloadPlan
from ..placement import placement as placing
from ..placement.placement import Placement, Tier
from ..placement.tier_memory import TierMemory
from .kv_budget import KVBudget


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What was decided. `memory`: by tier what it will hold. `offload`: which experts in RAM a GPU computes."""

    placement: Placement
    kv_budget: KVBudget
    memory: dict[Tier, TierMemory]
    table: Tier  # of the embedding
    experts: tuple[int, ...]  # bytes of each layer's
    offload: OffloadPlan = NONE
    spare_pages: int = 0  # of the cache, beyond those of the budget: for rows of a graph without a sequence
    expert_cache: int = 0  # bytes for experts that a policy moves: in VRAM, or in RAM of experts on a disk
    stored: StoredExperts | None = None  # of the files, where experts stay there, or other machines load them
    shared: SharedRoom | None = None  # memory of that cache, and of pages: which of them it holds changes
    not_shared: str = ""  # why it is not, where that was wanted
    why: str = ""  # experts lie where they do, if nobody said it
    room: int = 0  # beside hosts: bytes of RAM that experts may take here

    @property
    def cache_at_start(self) -> int:
        """Bytes for experts while the pages of a few short sequences are open."""
        if self.shared is None:
            return self.expert_cache
        return min(self.shared.budget(self.shared.least), sum(self.experts))

    @property
    def spare_page(self) -> int:
        """The number of the page that belongs to no sequence, if there is one."""
        return self.kv_budget.pages if self.shared is None else 0

    @property
    def has_shelf(self) -> bool:
        """Whether experts of RAM are read by themselves, as beside hosts, which may have got none."""
        return self.stored is not None and Tier.DISK not in self.placement.tiers

    @property
    def bytes_in_ram(self) -> list[int]:
        """Bytes of experts that are loaded into RAM with the rest, by layer; beside hosts they go to a shelf."""
        if self.has_shelf:
            return [0] * len(self.experts)
        return placing.bytes_by_layer(self.placement, self.experts, Tier.CPU)

    def where(self, devices: Mapping[Tier, Device]) -> Where | None:
        """Where the weights are to be allocated; None where all is RAM and nothing is split."""
        tiers = self.placement.tiers
        if self.placement.main is Tier.CPU and Tier.DISK not in tiers and not self.has_shelf:
            return None
        names = {tier: tier.value for tier in Tier}
        if self.has_shelf:
            names[Tier.CPU] = Tier.NET.value
        in_files = {tier.value: "meta" for tier in (Tier.DISK, Tier.NET)}
        return Where(
            common=str(devices[self.placement.main].place),
            embed=str(devices[self.table].place),
            experts=[[names[tier] for tier in row] for row in self.placement.experts],
            tiers={**{tier.value: str(device.place) for tier, device in devices.items()}, **in_files},
        )
