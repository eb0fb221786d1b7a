"""Weights of what is made of a table's rows for runs of tokens; the table itself stays in its file."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ....kernels.packed import Matrix
from ...families.family import GramsNames
from ...spec import GramsSpec, ModelSpec
from ..mixers.allocator import Allocator, FormatOf
from ..mixers.target import Change, Named, deep, vector, whole


@dataclass(frozen=True, kw_only=True)
class GramsWeights:
    """Norms of all streams, [streams hidden], and taps of their convolution, [streams hidden, taps]: float32."""

    key: Matrix
    value: Matrix
    key_norm: Tensor
    query_norm: Tensor
    conv_norm: Tensor
    conv: Tensor


def allocate(make: Allocator, spec: ModelSpec, it: GramsSpec, format_of: FormatOf) -> GramsWeights:
    wide = spec.norm_size
    return GramsWeights(
        key=make.matrix(format_of("grams_key"), wide, it.width),
        value=make.matrix(format_of("grams_value"), spec.hidden, it.width),
        key_norm=make.vector(wide),
        query_norm=make.vector(wide),
        conv_norm=make.vector(wide),
        conv=make.vector(wide, it.taps),
    )


def targets(names: GramsNames, it: GramsWeights, at: str, norm: Change) -> Named:
    """The tensors of one layer by name. norm: of the weights of norms."""
    yield names.key, whole(it.key, "dense", at + "grams_key")
    yield names.value, whole(it.value, "dense", at + "grams_value")
    yield names.key_norm, vector(it.key_norm, norm)
    yield names.query_norm, vector(it.query_norm, norm)
    yield names.conv_norm, vector(it.conv_norm, norm)
    yield names.conv, deep(it.conv, names.conv_is_deep)
