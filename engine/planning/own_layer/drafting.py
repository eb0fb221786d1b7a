"""What a model's own layer costs and gains in a plan: bytes in memory, seconds of a drafted token, tokens a second.

A token of a draft takes a pass of the layer and of the model's head, for all sequences of the batch together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...bandwidth_model.hardware import IN_CACHES
from ..layouts import Demand, Placement
from ..speed import Drafted, Model, Workload
from ..storage import Storage
from . import waiting_rows
from .layer import OwnLayer


@dataclass(frozen=True, kw_only=True)
class OwnDrafts:
    """weights, cache, waiting: bytes of the layer, of its keys and values, of hidden states that wait for it. token_s:
    seconds of a drafted token of each sequence; gains: by how often it is right."""

    weights: int
    cache: int
    waiting: int
    token_s: float
    gains: tuple[Drafted, ...]


def with_own(demand: Demand, own: OwnLayer | None, cache: int, batch: int, *, beside_gpu: bool) -> Demand:
    """What a run needs with the layer. cache: bytes of its keys and values."""
    if own is None:
        return demand
    waiting = waiting_rows.nbytes(own.model.hidden, batch)
    return replace(demand, own_layer=own.weights, own_cache=cache + waiting, own_beside_gpu=beside_gpu)


def is_worth_loading(storage: Storage, own: OwnLayer) -> bool:
    """Whether the engine takes the layer by itself: not where the CPU's caches hold the model."""
    return storage.in_memory + own.weights >= IN_CACHES


def of(own: OwnLayer, demand: Demand, engine: Model, placement: Placement, work: Workload) -> OwnDrafts | None:
    """Of the placement that is best; None where the layer is not used there."""
    if not demand.own(placement.is_in_ram):
        return None
    at = placement.outside
    alone = Placement(name=placement.name, common=(at,), experts=(at,), outside=at)
    layer = Model(own.model, own.storage, engine.hardware)
    token_s = layer.seconds(layer.decode(alone, work)).seconds
    waiting = waiting_rows.nbytes(own.model.hidden, work.batch)
    return OwnDrafts(
        weights=own.weights, cache=demand.own_cache - waiting, waiting=waiting, token_s=token_s,
        gains=engine.with_drafts(placement, work, token_s),
    )  # fmt: skip
