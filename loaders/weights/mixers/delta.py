"""Weights of the gated delta rule: queries, keys and values stacked into one matrix. What decides on a change and its
decay is a small matrix, and stays float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ....kernels import FORMATS
from ....kernels.packed import Matrix, Stacked
from ...families.family import DeltaNames, TensorNames
from ...spec import DeltaSpec
from .allocator import Allocator, FormatOf
from .target import Change, Named, Piece, Target, deep, vector, whole


@dataclass(frozen=True, kw_only=True)
class DeltaWeights:
    """ba: rows of what decides on changes, then on decay; with decays by key of changes alone. conv [channels, taps],
    rate below 0, dt_bias and norm float32. decay_low, decay, z_low: only by key."""

    qkv: Stacked
    z: Matrix
    ba: Matrix
    conv: Tensor
    rate: Tensor
    dt_bias: Tensor
    norm: Tensor
    o: Matrix
    decay_low: Matrix | None = None
    decay: Matrix | None = None
    z_low: Matrix | None = None

    KEEPING = ("qkv", "ba", "conv", "rate", "dt_bias", "decay_low", "decay")


def allocate(make: Allocator, spec: DeltaSpec, hidden: int, format_of: FormatOf) -> DeltaWeights:
    rows = spec.k_rows, spec.k_rows, spec.out_rows
    return DeltaWeights(
        qkv=make.stacked([format_of("delta_qkv")] * 3, rows, hidden),
        z=make.matrix(format_of("z"), spec.out_rows, spec.gate_rank or hidden),
        ba=make.matrix(FORMATS["f32"], (1 if spec.by_key else 2) * spec.v_heads, hidden),
        conv=make.vector(spec.channels, spec.taps),
        rate=make.vector(spec.v_heads),
        dt_bias=make.vector(spec.decays),
        norm=make.vector(spec.v_dim),
        o=make.matrix(format_of("delta_o"), hidden, spec.out_rows),
        decay_low=make.matrix(format_of("decay_low"), spec.decay_rank, hidden) if spec.decay_rank else None,
        decay=make.matrix(format_of("decay"), spec.decays, spec.decay_rank or hidden) if spec.by_key else None,
        z_low=make.matrix(format_of("z_low"), spec.gate_rank, hidden) if spec.gate_rank else None,
    )


def targets(spec: DeltaSpec, names: TensorNames, it: DeltaWeights, at: str, norm: Change) -> Named:
    """The tensors of one layer by name. The norm behind the rule counts from 0 in every family."""
    own = names.delta
    yield from _projections(spec, own, it, at)
    if spec.by_key:
        yield own.b, whole(it.ba)
    elif own.ba is not None:
        yield own.ba, _ba(spec, it.ba)
    else:
        yield own.b, whole(it.ba.slice_rows(0, spec.v_heads))
        yield own.a, whole(it.ba.slice_rows(spec.v_heads, 2 * spec.v_heads))
    first = 0
    for name, rows in zip(own.convs, _rows(spec), strict=True) if own.convs else [(own.conv, spec.channels)]:
        yield name, deep(it.conv[first : first + rows], own.conv_is_deep)
        first += rows
    yield own.rate, vector(it.rate, "minus exp" if own.rate_is_log else "")
    yield own.dt_bias, vector(it.dt_bias)
    yield own.norm, vector(it.norm)
    yield own.o, whole(it.o, "dense", at + "delta_o")


def _rows(spec: DeltaSpec) -> tuple[int, int, int]:
    """Of queries, keys and values."""
    return spec.k_rows, spec.k_rows, spec.out_rows


def _projections(spec: DeltaSpec, own: DeltaNames, it: DeltaWeights, at: str) -> Named:
    """Of queries, keys, values and the gate, and what decays by key are made of."""
    if own.qkvz is not None:
        yield own.qkvz, _qkvz(spec, it, at)
        return
    first = 0
    for name, rows in zip(own.apart, _rows(spec), strict=True) if own.apart else [(own.qkv, it.qkv.rows)]:
        yield name, whole(it.qkv.slice_rows(first, first + rows), "dense", at + "delta_qkv")
        first += rows
    yield own.z, whole(it.z, "dense", at + "z")
    for name, role, matrix in (
        (own.z_low, "z_low", it.z_low),
        (own.decay_low, "decay_low", it.decay_low),
        (own.decay, "decay", it.decay),
    ):
        if matrix is not None:
            yield name, whole(matrix, "dense", at + role)


def _qkvz(spec: DeltaSpec, it: DeltaWeights, at: str) -> Target:
    """Of each head of keys: its queries, its keys, the values of its heads, their gates."""
    each = spec.v_heads // spec.k_heads * spec.v_dim
    q, k = (it.qkv.slice_rows(i * spec.k_rows, (i + 1) * spec.k_rows) for i in (0, 1))
    v = it.qkv.slice_rows(2 * spec.k_rows, it.qkv.rows)
    parts = ((q, spec.k_dim), (k, spec.k_dim), (v, each), (it.z, each))
    rows = it.qkv.rows + it.z.rows
    return Target((rows, q.cols), _in_turns(spec.k_heads, parts), "dense", (at + "delta_qkv", at + "z"))


def _ba(spec: DeltaSpec, ba: Matrix) -> Target:
    """Of each head of keys: what its heads of values change by, and their decay."""
    each = spec.v_heads // spec.k_heads
    parts = ((ba.slice_rows(0, spec.v_heads), each), (ba.slice_rows(spec.v_heads, ba.rows), each))
    return Target((ba.rows, ba.cols), _in_turns(spec.k_heads, parts))


def _in_turns(heads: int, parts: Sequence[tuple[Matrix, int]]) -> tuple[Piece, ...]:
    """Rows of a tensor that has of each head so many rows for each of these matrices."""
    pieces, first = [], 0
    for head in range(heads):
        for matrix, rows in parts:
            pieces.append(Piece(first, matrix.slice_rows(head * rows, (head + 1) * rows)))
            first += rows
    return tuple(pieces)
