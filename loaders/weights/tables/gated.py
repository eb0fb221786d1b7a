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


def targets(start: str, it: GatedMixing) -> Named:
    """Its tensors by name. start: of all their names."""
    yield start + "input_mix_weight_down.weight", whole(it.down)
    yield start + "input_mix_weight_up.weight", whole(it.up)
    if it.inject is not None:
        yield start + "block_inject_weight.weight", whole(it.inject)
