"""Whether every memory of a plan holds what the plan puts there, and what to say where one does not."""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import MemoryNeeded
from ...loaders.weights.checkpoint import SMALLER
from ..devices.device import Device
from ..placement.placement import Placement, Tier
from ..placement.tier_memory import TierMemory, of_free, together
from ..units import size

EXPERT_CACHE = "expert cache"
STREAM = "stream buffers"  # what is needed for experts that are copied to a GPU
READING = "buffers for reading"  # of experts that stay on a disk
MTP = "MTP layer"


def check(placement: Placement, found: Mapping[Tier, TierMemory], devices: Mapping[Tier, Device]) -> None:
    """Raises MemoryNeeded for the first memory that is too small. What plays a GPU's part is RAM, too."""
    for tier, memory in found.items():
        require(memory, f"{tier.value} ({devices[tier].name})", placement)
    in_ram = [memory for tier, memory in found.items() if not devices[tier].is_cuda]
    require(together(in_ram, of_free(devices[Tier.CPU].free)), "RAM", placement)


def require(memory: TierMemory, what: str, placement: Placement) -> None:
    """Raises MemoryNeeded where it does not hold what it would have to. what: it is, for people."""
    if memory.fits:
        return
    needs, limit = memory.needed, memory.available or 0.0
    parts = ", ".join(f"{name} {size(needed)}" for name, needed in needs.items())
    fewer = "place fewer experts there (--n-cpu-moe auto), " if what.startswith("gpu") and "experts" in needs else ""
    fewer += "copy none there (--stream-from never), " if STREAM in needs else ""
    fewer += "give experts less of it (--expert-cache), " if EXPERT_CACHE in needs else ""
    raise MemoryNeeded(
        f"placement {placement.name}: {what} would hold {size(memory.total)} ({parts}), {size(max(0.0, limit))} can be "
        f"taken: {fewer}lower --max-context, or {SMALLER}"
    )
