"""Weights of latent attention. The up-projection of keys is stored the other way round, as it is used: a query goes
through it into the space of latents (`kernels/mixers.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ....kernels.packed import Matrix
from ...families.family import TensorNames
from ...spec import LatentSpec
from . import indexer
from .allocator import Allocator, FormatOf
from .target import Change, Named, Piece, Target, vector, whole


@dataclass(frozen=True, kw_only=True)
class LatentWeights:
    """q_a, its norm and bias: only where queries come through a rank of their own. k_up: of each head [rank, nope],
    v_up [v, rank], one below the other. warmth: of
    logarithms of positions, and what is added. index_...: of a layer that chooses its keys, see `indexer.py`."""

    q_a: Matrix | None
    q_a_norm: Tensor | None
    q_a_bias: Tensor | None
    q: Matrix
    kv_a: Matrix
    kv_a_bias: Tensor | None
    kv_a_norm: Tensor
    k_up: Matrix
    v_up: Matrix
    o: Matrix
    o_bias: Tensor | None
    gate: Matrix | None = None
    warmth: Tensor | None = None
    warmth_bias: Tensor | None = None
    index_q: Matrix | None = None
    index_k: Matrix | None = None
    index_norm: Tensor | None = None
    index_norm_bias: Tensor | None = None
    index_weights: Matrix | None = None
    index_gate: Matrix | None = None
    index_places: Tensor | None = None
    index_in_norm: Tensor | None = None
    index_in_bias: Tensor | None = None
    index_warmth: Tensor | None = None
    index_warmth_bias: Tensor | None = None

    KEEPING = ("kv_a", "kv_a_bias", "kv_a_norm", "index_k", "index_norm", "index_norm_bias", "index_gate")


def allocate(make: Allocator, spec: LatentSpec, hidden: int, format_of: FormatOf) -> LatentWeights:
    rank = spec.q_rank
    return LatentWeights(
        q_a=make.matrix(format_of("q_a"), rank, hidden) if rank else None,
        q_a_norm=make.vector(rank) if rank else None,
        q_a_bias=make.vector(rank) if rank and spec.bias else None,
        q=make.matrix(format_of("q"), spec.q_rows, rank or hidden),
        kv_a=make.matrix(format_of("kv_a"), spec.row, hidden),
        kv_a_bias=make.vector(spec.row) if spec.bias else None,
        kv_a_norm=make.vector(spec.kv_rank),
        k_up=make.matrix(format_of("k_up"), spec.heads * spec.kv_rank, spec.nope),
        v_up=make.matrix(format_of("v_up"), spec.out_rows, spec.kv_rank),
        o=make.matrix(format_of("o"), hidden, spec.out_rows),
        o_bias=make.vector(hidden) if spec.bias else None,
        gate=make.matrix(format_of("gate_of_heads"), spec.gate_rows, hidden) if spec.gate else None,
        warmth=make.vector(spec.heads) if spec.by_logs else None,
        warmth_bias=make.vector(spec.heads) if spec.by_logs else None,
        **indexer.allocate(make, spec, hidden, format_of),
    )


def targets(spec: LatentSpec, names: TensorNames, it: LatentWeights, at: str, norm: Change) -> Named:
    """The tensors of one layer by name. norm: of the weights of norms."""
    own = names.latent
    if it.q_a is not None and it.q_a_norm is not None:
        yield own.q_a + ".weight", whole(it.q_a, "dense", at + "q_a")
        yield own.q_a_norm, vector(it.q_a_norm, norm)
    if it.q_a_bias is not None:
        yield own.q_a + ".bias", vector(it.q_a_bias)
    heads = tuple(_queries(spec, it.q))
    yield (
        (own.q if it.q_a is None else own.q_b) + ".weight",
        Target((it.q.rows, it.q.cols), heads, "dense", (at + "q",)),
    )
    pieces = (Piece(0, it.kv_a.slice_rows(0, spec.kv_rank)), *_halves(spec, it.kv_a, spec.kv_rank))
    yield own.kv_a + ".weight", Target((it.kv_a.rows, it.kv_a.cols), pieces, "dense", (at + "kv_a",))
    if it.kv_a_bias is not None:
        yield own.kv_a + ".bias", _kv_a_bias(spec, it.kv_a_bias)
    yield own.kv_a_norm, vector(it.kv_a_norm, norm)
    yield from _up(spec, names, it, at)
    yield own.o + ".weight", whole(it.o, "dense", at + "o")
    if it.o_bias is not None:
        yield own.o + ".bias", vector(it.o_bias)
    if it.gate is not None:
        yield own.gate, whole(it.gate, "dense", at + "gate_of_heads")
    for name, values in ((own.warmth, it.warmth), (own.warmth_bias, it.warmth_bias)):
        if values is not None:
            yield name, vector(values)
    if it.index_q is not None:
        yield from indexer.targets(spec, names, vars(it), at)


def _queries(spec: LatentSpec, q: Matrix) -> Iterator[Piece]:
    """Of each head the part without rotation, then the rotated one."""
    size = spec.nope + spec.rope_dim
    for head in range(spec.heads):
        yield Piece(head * size, q.slice_rows(head * size, head * size + spec.nope))
        yield from _halves(spec, q, head * size + spec.nope)


def _halves(spec: LatentSpec, into: Matrix, first: int) -> Iterator[Piece]:
    """Rows that are rotated as neighbours, as those of two halves."""
    half = spec.rope_dim // 2
    for odd in (0, 1) if half else ():
        start = first + odd * half
        yield Piece(first + odd, into.slice_rows(start, start + half), step=2)


def _kv_a_bias(spec: LatentSpec, bias: Tensor) -> Target:
    """The bias of latents and rotary keys, which is no row but a column here: its values are put in order."""
    column = Matrix.plain(bias.view(-1, 1))
    pieces = (Piece(0, column.slice_rows(0, spec.kv_rank)), *_halves(spec, column, spec.kv_rank))
    return Target((bias.numel(),), tuple(Piece(0, p.into, column=p.first, step=p.step) for p in pieces))


def _up(spec: LatentSpec, names: TensorNames, it: LatentWeights, at: str) -> Named:
    """The up-projections: both in one tensor, of each head the rows for keys, then those for values; or each alone,
    that of keys turned already."""
    own, rank, nope, v = names.latent, spec.kv_rank, spec.nope, spec.v_dim
    places = (at + "k_up", at + "v_up")
    if own.kv_b is None:
        keys, values = (spec.heads, rank, nope), (spec.heads, v, rank)
        yield own.k_up + ".weight", Target(keys, (Piece(0, it.k_up),), "dense", places[:1])
        yield own.v_up + ".weight", Target(values, (Piece(0, it.v_up),), "dense", places[1:])
        return
    pieces = []
    for head in range(spec.heads):
        first = head * (nope + v)
        pieces.append(Piece(first, it.k_up.slice_rows(head * rank, (head + 1) * rank), column=0))
        pieces.append(Piece(first + nope, it.v_up.slice_rows(head * v, (head + 1) * v)))
    shape = (spec.heads * (nope + v), rank)
    yield own.kv_b + ".weight", Target(shape, tuple(pieces), "dense", places, turned_places=places[:1])
