"""Whether the memory of a cache of experts can be shared with pages of keys and values, and what of it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...kernels import ExpertLayout
from ...kernels.formats import KVFormat
from ...loaders.spec import AttentionSpec, LatentSpec, ModelSpec
from ..experts.cache.shared_memory import SharedRoom
from ..ledger.windows import Window, window_of
from ..model.kv_cache import PAGE, row_sizes
from .kv_budget import KVBudget

ALIGNED = 64  # bytes: where kernels want a page to begin


def share(
    spec: ModelSpec, format: KVFormat, layouts: Sequence[ExpertLayout], budget: KVBudget, spare: int, experts: int
) -> SharedRoom | str:
    """What is shared; or why nothing is. experts: bytes of the cache besides all pages of the budget, and `spare`
    pages."""
    units = list(_units(spec, format, [window for window, _ in budget.windows]))
    if len(set(layouts)) > 1:
        return "its experts are in several formats"
    if len(set(units)) != 1 or units[0] % ALIGNED:
        return "the rows of its layers are of several sizes" if units else "it has no KV cache"
    return SharedRoom(unit=units[0], stride=len(units), pages=budget.pages, spare=spare, experts=experts)


def _units(spec: ModelSpec, format: KVFormat, apart: Sequence[Window]) -> Iterator[int]:
    """Bytes of a page in every tensor of the layers that have no pool of their own."""
    for layer in spec.layers:
        mixer = layer.mixer
        if not isinstance(mixer, AttentionSpec | LatentSpec) or (window_of(mixer) in apart):
            continue
        groups = mixer.kv_heads if isinstance(mixer, AttentionSpec) else 1
        yield from (PAGE * groups * format.bytes(width) for width in row_sizes(mixer))
        if mixer.index_key:
            yield PAGE * format.bytes(mixer.index_key)
