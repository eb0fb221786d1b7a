"""Weights of gated residual streams: small matrices, which stay float32."""

from __future__ import annotations

from ....kernels import FORMATS
from ....kernels.packed import GatedMixing
from ...spec import GatedStreamsSpec, ModelSpec
from ..mixers.allocator import Allocator
from ..mixers.target import Named, whole


def allocate_gated(make: Allocator, spec: ModelSpec, streams: GatedStreamsSpec, gives: bool) -> GatedMixing:
    """Uninitialised. gives: a part that gives something back."""
    f32, wide = FORMATS["f32"], streams.count * spec.hidden
    return GatedMixing(
        down=make.matrix(f32, streams.rank, wide),
        up=make.matrix(f32, wide, streams.rank),
        inject=make.matrix(f32, streams.count, wide) if gives else None,
    )


def targets(name: str, parts: tuple[str, str, str], it: GatedMixing) -> Named:
    """Its tensors by name, which has a place for what each part is called: the way down, up, and what is given back."""
    for part, matrix in zip(parts, (it.down, it.up, it.inject), strict=True):
        if matrix is not None:
            yield name.format(part), whole(matrix)
