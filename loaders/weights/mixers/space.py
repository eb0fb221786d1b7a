"""Weights of a state space: the gate of what comes out, the convolution's channels and the steps are one projection."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ....kernels.packed import Matrix
from ...families.family import TensorNames
from ...spec import SpaceSpec
from .allocator import Allocator, FormatOf
from .target import Change, Named, Piece, Target, deep, vector, whole


@dataclass(frozen=True, kw_only=True)
class SpaceWeights:
    """rows: of the gate, of values, of what they are put in by and of what reads, of steps. conv [channels, taps],
    biases, norm, and of each head the rate (below 0), dt_bias and skip: float32."""

    rows: Matrix
    rows_bias: Tensor | None
    conv: Tensor
    conv_bias: Tensor | None
    rate: Tensor
    dt_bias: Tensor
    skip: Tensor
    norm: Tensor
    o: Matrix
    o_bias: Tensor | None

    KEEPING = ("rows", "rows_bias", "conv", "conv_bias", "rate", "dt_bias", "skip")


def allocate(make: Allocator, spec: SpaceSpec, hidden: int, format_of: FormatOf) -> SpaceWeights:
    return SpaceWeights(
        rows=make.matrix(format_of("space_rows"), spec.in_rows, hidden),
        rows_bias=make.vector(spec.in_rows) if spec.bias else None,
        conv=make.vector(spec.channels, spec.taps),
        conv_bias=make.vector(spec.channels) if spec.conv_bias else None,
        rate=make.vector(spec.heads),
        dt_bias=make.vector(spec.heads),
        skip=make.vector(spec.heads),
        norm=make.vector(spec.out_rows),
        o=make.matrix(format_of("space_o"), hidden, spec.out_rows),
        o_bias=make.vector(hidden) if spec.bias else None,
    )


def targets(spec: SpaceSpec, names: TensorNames, it: SpaceWeights, at: str, norm: Change) -> Named:
    """The tensors of one layer by name. The norm counts from 0 in every family."""
    own = names.space
    yield own.rows + ".weight", whole(it.rows, "dense", at + "space_rows")
    yield own.conv + ".weight", deep(it.conv, own.conv_is_deep)
    yield own.rate, _of_heads(it.rate, own.in_columns, "minus exp" if own.rate_is_log else "")
    yield own.dt_bias, vector(it.dt_bias)
    yield own.skip, _of_heads(it.skip, own.in_columns)
    yield own.norm, _grouped(it.norm, spec.groups) if own.in_columns else vector(it.norm)
    yield own.o + ".weight", whole(it.o, "dense", at + "space_o")
    for name, bias in ((own.rows, it.rows_bias), (own.conv, it.conv_bias), (own.o, it.o_bias)):
        if bias is not None:
            yield name + ".bias", vector(bias)


def _of_heads(values: Tensor, in_column: bool, change: Change = "") -> Target:
    """A vector, or a column that is one."""
    if not in_column:
        return vector(values, change)
    return Target((values.numel(), 1), (Piece(0, Matrix.plain(values.view(-1, 1))),), change=change)


def _grouped(values: Tensor, groups: int) -> Target:
    """A vector whose groups are rows."""
    rows = Matrix.plain(values.view(groups, -1))
    return Target((rows.rows, rows.cols), (Piece(0, rows),))
