"""What a model's own layer costs and gains in a plan: bytes in memory, seconds of a drafted token, tokens a second.

A token of a draft takes a pass of the layer and of some rows of the model's head, for all sequences of the batch
together (`draft_rows.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...bandwidth_model.hardware import IN_CACHES
from ..layouts import Demand, Placement
from ..speed import Drafted, Guessing, Model, Workload
from ..storage import Storage
from . import draft_rows, waiting_rows
from .layer import OwnLayer


@dataclass(frozen=True, kw_only=True)
class OwnDrafts:
    """weights, cache, waiting: bytes of the layer, of its keys and values, of hidden states that wait for it. token_s:
    seconds of a drafted token of each sequence, and guess_bytes: what it reads for the first, chosen among `rows`, the
    best where a token is right most often; gains: by how often it is right, `ways`: all that were compared."""

    weights: int
    cache: int
    waiting: int
    token_s: float
    guess_bytes: int
    rows: int
    ways: tuple[Guessing, ...]
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


def of(
    own: OwnLayer, demand: Demand, engine: Model, placement: Placement, work: Workload, asked: int | str
) -> OwnDrafts | None:
    """Of the placement that is best; None where the layer is not used there. asked: for a draft vocabulary."""
    if not demand.own(placement.is_in_ram):
        return None
    at = placement.outside
    alone = Placement(name=placement.name, common=(at,), experts=(at,), outside=at)
    ways = tuple(_way(own, rows, engine, alone, work) for rows in draft_rows.choices(asked, own.model.vocab))
    gains = engine.with_drafts(placement, work, ways)
    best = next(way for way in ways if way.rows == gains[-1].rows)
    waiting = waiting_rows.nbytes(own.model.hidden, work.batch)
    return OwnDrafts(
        weights=own.weights, cache=demand.own_cache - waiting, waiting=waiting, token_s=best.token_s,
        guess_bytes=best.nbytes, rows=best.rows, ways=ways, gains=gains,
    )  # fmt: skip


def _way(own: OwnLayer, rows: int, engine: Model, alone: Placement, work: Workload) -> Guessing:
    """A guess among so many tokens."""
    narrow, vocab = own.among(rows), own.model.vocab
    layer = Model(narrow.model, narrow.storage, engine.hardware)
    read = layer.bytes_per_token(alone, replace(work, batch=1))
    return Guessing(
        rows=rows, token_s=layer.seconds(layer.decode(alone, work)).seconds, share=draft_rows.share(rows, vocab),
        nbytes=sum(size for groups in read.values() for size in groups.values()),
    )  # fmt: skip
