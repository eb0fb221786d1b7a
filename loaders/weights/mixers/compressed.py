"""Weights of attention over a window and compressed entries. What is turned stays in the order of the files: it is
turned pair by pair (`kernels/compressed`)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ....kernels import FORMATS
from ....kernels.packed import Matrix
from ...families.family import TensorNames
from ...spec import CompressedSpec
from .allocator import Allocator, FormatOf
from .target import Change, Named, vector, whole


@dataclass(frozen=True, kw_only=True)
class CompressedWeights:
    """o_a: of each group of heads [o_rank, its part of what heads give], one below the other. made and weighed: of what
    entries are made of and by which weights, of each series a block of rows; places [rate, rows of made] and norms
    float32. index_...: the same of the indexer's keys of entries, its queries, and the weights of its heads."""

    q_a: Matrix
    q_a_norm: Tensor
    q: Matrix
    k: Matrix
    k_norm: Tensor
    sinks: Tensor
    o_a: Matrix
    o: Matrix
    made: Matrix | None = None
    weighed: Matrix | None = None
    places: Tensor | None = None
    norm: Tensor | None = None
    index_made: Matrix | None = None
    index_weighed: Matrix | None = None
    index_places: Tensor | None = None
    index_norm: Tensor | None = None
    index_q: Matrix | None = None
    index_weights: Matrix | None = None

    # What a pass reads that only keeps keys and entries.
    KEEPING = (
        "k", "k_norm", "made", "weighed", "places", "norm", "index_made", "index_weighed", "index_places", "index_norm",
    )  # fmt: skip


def allocate(make: Allocator, spec: CompressedSpec, hidden: int, format_of: FormatOf) -> CompressedWeights:
    it, entries, keys = spec.indexer, spec.series * spec.head_dim, spec.series * spec.index_key
    return CompressedWeights(
        q_a=make.matrix(format_of("q_a"), spec.q_rank, hidden),
        q_a_norm=make.vector(spec.q_rank),
        q=make.matrix(format_of("q"), spec.q_rows, spec.q_rank),
        k=make.matrix(format_of("k"), spec.head_dim, hidden),
        k_norm=make.vector(spec.head_dim),
        sinks=make.vector(spec.heads),
        o_a=make.matrix(format_of("o_a"), spec.out_rows, spec.q_rows // spec.groups),
        o=make.matrix(format_of("o"), hidden, spec.out_rows),
        made=make.matrix(format_of("made"), entries, hidden) if entries else None,
        weighed=make.matrix(format_of("weighed"), entries, hidden) if entries else None,
        places=make.vector(spec.rate, entries) if entries else None,
        norm=make.vector(spec.head_dim) if entries else None,
        index_made=make.matrix(format_of("index_made"), keys, hidden) if keys else None,
        index_weighed=make.matrix(format_of("index_weighed"), keys, hidden) if keys else None,
        index_places=make.vector(spec.rate, keys) if keys else None,
        index_norm=make.vector(spec.index_key) if keys else None,
        index_q=make.matrix(format_of("index_q"), it.heads * it.dim, spec.q_rank) if it else None,
        index_weights=make.matrix(FORMATS["f32"], it.heads, hidden) if it else None,
    )


def targets(spec: CompressedSpec, names: TensorNames, it: CompressedWeights, at: str, norm: Change) -> Named:
    """The tensors of one layer by name. norm: of the weights of norms."""
    own = names.compressed
    for name, role, matrix in (
        (own.q_a, "q_a", it.q_a),
        (own.q, "q", it.q),
        (own.k, "k", it.k),
        (own.o_a, "o_a", it.o_a),
        (own.o, "o", it.o),
        (own.entries + own.made, "made", it.made),
        (own.entries + own.weighed, "weighed", it.weighed),
        (own.index_entries + own.made, "index_made", it.index_made),
        (own.index_entries + own.weighed, "index_weighed", it.index_weighed),
        (own.index_q, "index_q", it.index_q),
    ):
        if matrix is not None:
            yield name, whole(matrix, "dense", at + role)
    for name, values in (
        (own.q_a_norm, it.q_a_norm),
        (own.k_norm, it.k_norm),
        (own.entries + own.norm, it.norm),
        (own.index_entries + own.norm, it.index_norm),
    ):
        if values is not None:
            yield name, vector(values, norm)
    for name, places in ((own.entries + own.places, it.places), (own.index_entries + own.places, it.index_places)):
        if places is not None:
            yield name, whole(Matrix.plain(places))
    if it.index_weights is not None:
        yield own.index_weights, whole(it.index_weights)
    yield own.sinks, vector(it.sinks)
