"""Weights of a short convolution between two gates, whose projections are one matrix with that of its input."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ....kernels.packed import Matrix
from ...families.family import TensorNames
from ...spec import ConvSpec
from .allocator import Allocator, FormatOf
from .target import Change, Named, deep, vector, whole


@dataclass(frozen=True, kw_only=True)
class ConvWeights:
    """rows: what the input is multiplied by, then the output, then the input. conv [channels, taps] and biases
    float32."""

    rows: Matrix
    rows_bias: Tensor | None
    conv: Tensor
    conv_bias: Tensor | None
    o: Matrix
    o_bias: Tensor | None

    KEEPING = ("rows", "rows_bias", "conv", "conv_bias")


def allocate(make: Allocator, spec: ConvSpec, hidden: int, format_of: FormatOf) -> ConvWeights:
    return ConvWeights(
        rows=make.matrix(format_of("conv_rows"), 3 * spec.channels, hidden),
        rows_bias=make.vector(3 * spec.channels) if spec.bias else None,
        conv=make.vector(spec.channels, spec.taps),
        conv_bias=make.vector(spec.channels) if spec.bias else None,
        o=make.matrix(format_of("conv_o"), hidden, spec.channels),
        o_bias=make.vector(hidden) if spec.bias else None,
    )


def targets(spec: ConvSpec, names: TensorNames, it: ConvWeights, at: str, norm: Change) -> Named:
    """The tensors of one layer by name."""
    own = names.conv
    yield own.rows + ".weight", whole(it.rows, "dense", at + "conv_rows")
    yield own.conv + ".weight", deep(it.conv, own.conv_is_deep)
    yield own.o + ".weight", whole(it.o, "dense", at + "conv_o")
    for name, bias in ((own.rows, it.rows_bias), (own.conv, it.conv_bias), (own.o, it.o_bias)):
        if bias is not None:
            yield name + ".bias", vector(bias)
