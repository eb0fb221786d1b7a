"""Attention over a window and compressed entries, put together at load."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ....kernels.compressed.attention import CompressedBlock, EntryIndexer
from ....kernels.compressed.entries import Entries
from ....kernels.packed import Matrix
from ....loaders.spec import CompressedSpec
from ....loaders.weights.mixers import CompressedWeights
from ..kv_cache import PAGE, Compressed

Turns = tuple[Tensor, Tensor]  # cos and sin


def block(
    mixer: CompressedSpec,
    it: CompressedWeights,
    cache: Compressed,
    turns: Turns,
    ones: Tensor,
    common: dict[str, Any],
) -> CompressedBlock:
    """The block of a layer. ones: float32, as many as a head has numbers."""
    assert isinstance(cache.rows, Tensor), "compressed entries in q8_0, whose scales are a page's"
    eps, states = common["eps"], cache.states
    entries = indexer = None
    if states is not None:
        own = it.made, it.weighed, it.places, it.norm
        entries = _entries(own, cache.entries, states.inputs, turns, eps)
    if mixer.indexer is not None and states is not None and states.state is not None:
        assert it.index_q is not None
        assert it.index_weights is not None
        of_index = it.index_made, it.index_weighed, it.index_places, it.index_norm
        keys = _entries(of_index, cache.index, states.state, turns, eps)
        sizes = {"heads": mixer.indexer.heads, "top": mixer.indexer.top}
        indexer = EntryIndexer(q=it.index_q, weights=it.index_weights, keys=keys, **sizes)
    return CompressedBlock(
        heads=mixer.heads, q_a=it.q_a, q_a_norm=it.q_a_norm, q=it.q, ones_d=ones, k=it.k, k_norm=it.k_norm,
        sinks_N=it.sinks, o_a=it.o_a, o=it.o, o_bias=None, groups=mixer.groups, rows_P1Bd=cache.rows, kind=cache.kind,
        cos_Pr=turns[0], sin_Pr=turns[1], scale=mixer.scale, window=mixer.window, entries=entries, indexer=indexer,
        **common,
    )  # fmt: skip


def _entries(
    own: tuple[Matrix | None, Matrix | None, Tensor | None, Tensor | None],
    rows: Tensor,
    state: Tensor,
    turns: Turns,
    eps: float,
) -> Entries:
    made, weighed, places, norm = own
    assert made is not None
    assert weighed is not None
    assert places is not None
    assert norm is not None
    return Entries(
        made=made, weighed=weighed, places_nC=places, norm_e=norm, eps=eps, cos_Pr=turns[0], sin_Pr=turns[1],
        rows_P1Be=rows, state_LS3e=state, page=PAGE,
    )  # fmt: skip
