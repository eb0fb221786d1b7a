"""Weights of what chooses the keys of latent attention. The weights of its heads are a small matrix, and stay
float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ....kernels import FORMATS
from ....kernels.packed import Matrix
from ...families.family import TensorNames
from ...spec import IndexerSpec, LatentSpec
from .allocator import Allocator, FormatOf
from .target import Named, Piece, Target, vector, whole


def allocate(make: Allocator, spec: LatentSpec, hidden: int, format_of: FormatOf) -> dict[str, Any]:
    """By field of `LatentWeights`: queries [heads dim, rank], keys [dim, hidden], their LayerNorm float32 [dim],
    weights of heads [heads, hidden]; nothing where a layer has none of its own."""
    it = spec.indexer
    if it is None or not it.own:
        return {}
    return {
        "index_q": make.matrix(format_of("index_q"), it.heads * it.dim, spec.q_rank or hidden),
        "index_k": make.matrix(format_of("index_k"), it.dim, hidden),
        "index_norm": make.vector(it.dim),
        "index_norm_bias": make.vector(it.dim),
        "index_weights": make.matrix(FORMATS["f32"], it.heads, hidden),
        **(_of_pools(make, it, hidden, format_of) if it.pool > 1 else {}),
        **(_of_hidden(make, it.heads, hidden) if it.from_hidden else {}),
    }


def _of_pools(make: Allocator, it: IndexerSpec, hidden: int, format_of: FormatOf) -> dict[str, Any]:
    """What weighs the keys of a run: of the hidden state [dim, hidden], and of the place in it [pool, dim]."""
    return {
        "index_gate": make.matrix(format_of("index_gate"), it.dim, hidden),
        "index_places": make.vector(it.pool, it.dim),
    }


def _of_hidden(make: Allocator, heads: int, hidden: int) -> dict[str, Any]:
    """What queries of the hidden state have more: its LayerNorm, what logarithms of positions are weighted by."""
    names = ("index_in_norm", "index_in_bias", "index_warmth", "index_warmth_bias")
    return {name: make.vector(heads if "warmth" in name else hidden) for name in names}


def targets(spec: LatentSpec, names: TensorNames, it: Mapping[str, Any], at: str) -> Named:
    """The tensors of one layer by name; it: its weights by field. What is rotated comes as two halves, whatever the
    order it is stored in: that of queries and keys alike, so that no product changes."""
    own, found = names.latent, spec.indexer
    q, k = it["index_q"], it["index_k"]
    assert found is not None, "tensors of an indexer that is not there"
    queries = tuple(piece for head in range(found.heads) for piece in _halves(spec, q, head * found.dim))
    yield own.index_q, Target((q.rows, q.cols), queries, "dense", (at + "index_q",))
    yield own.index_k, Target((k.rows, k.cols), tuple(_halves(spec, k, 0)), "dense", (at + "index_k",))
    yield own.index_norm, _values(spec, it["index_norm"])
    yield own.index_bias, _values(spec, it["index_norm_bias"])
    yield own.index_weights, whole(it["index_weights"])
    if found.pool > 1:
        yield own.index_gate, whole(it["index_gate"], "dense", at + "index_gate")
        yield own.index_places, whole(Matrix.plain(it["index_places"]))
    if found.from_hidden:
        yield own.index_in_norm, vector(it["index_in_norm"])
        yield own.index_in_bias, vector(it["index_in_bias"])
        yield own.index_warmth, vector(it["index_warmth"])
        yield own.index_warmth_bias, vector(it["index_warmth_bias"])


def _halves(spec: LatentSpec, into: Matrix, first: int) -> Iterator[Piece]:
    """Of one head: rows that are rotated as neighbours as those of two halves, then the others."""
    it, turned = spec.indexer, spec.rope_dim
    assert it is not None, "an order of what is not there"
    start = first
    if it.neighbours and turned:
        half = turned // 2
        for odd in (0, 1):
            rows = into.slice_rows(first + odd * half, first + (odd + 1) * half)
            yield Piece(first + odd, rows, step=2)
        start += turned
    if start < first + it.dim:
        yield Piece(start, into.slice_rows(start, first + it.dim))


def _values(spec: LatentSpec, values: Tensor) -> Target:
    """A vector in the order of keys' rows: its values are those of a column."""
    pieces = _halves(spec, Matrix.plain(values.view(-1, 1)), 0)
    return Target((values.numel(),), tuple(Piece(0, p.into, column=p.first, step=p.step) for p in pieces))
