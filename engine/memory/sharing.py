"""Whether the memory of a cache of experts can be shared with pages of keys and values, and what of it is."""

from __future__ import annotations

from ...kernels.formats import KVFormat
from ...loaders.spec import ModelSpec
from ..experts.cache.shared_memory import SharedRoom
from ..model.kv_cache import paged_units
from .kv_budget import KVBudget

ALIGNED = 64  # bytes: where kernels want a page to begin


def share(
    spec: ModelSpec, format: KVFormat, sizes: tuple[int, ...], budget: KVBudget, spare: int, experts: int
) -> SharedRoom | str:
    """What is shared; or why nothing is. sizes: of experts, each once; experts: bytes of the cache besides all pages of
    the budget, and `spare` pages."""
    if spec.mtp is not None:
        return "its layer for multi-token prediction has keys in pages of its own"
    units = tuple(paged_units(spec, format, [window for window, _ in budget.windows]))
    if not units:
        return "it has no KV cache"
    if odd := [unit for unit in units if unit % ALIGNED]:
        return f"a page of {odd[0]} bytes in a layer does not end where kernels want the next one to begin"
    return SharedRoom(units=units, pages=budget.pages, spare=spare, experts=experts, sizes=sizes)
