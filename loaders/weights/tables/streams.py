"""What weighs residual streams: of a part of a layer, and behind the last one."""

from __future__ import annotations

from ....kernels import FORMATS
from ....kernels.packed import Fitting, GatedMixing, Mixing
from ...spec import BankedStreamsSpec, GatedStreamsSpec, ModelSpec, StreamsSpec
from ..mixers.allocator import Allocator
from .gated import allocate_gated


def of_layer(make: Allocator, spec: ModelSpec) -> Mixing | GatedMixing | Fitting | None:
    """What each part of a layer has to weigh streams by."""
    if spec.streams is None:
        return None
    if isinstance(spec.streams, BankedStreamsSpec):
        return fitting(make, spec, spec.streams)
    if isinstance(spec.streams, GatedStreamsSpec):
        return allocate_gated(make, spec, spec.streams, gives=True)
    rows, f32 = (2 + spec.streams.count) * spec.streams.count, FORMATS["f32"]
    fn = make.matrix(f32, rows, spec.streams.count * spec.hidden)
    return Mixing(fn=fn, base=make.vector(rows), scale=make.vector(3))


def fitting(make: Allocator, spec: ModelSpec, streams: BankedStreamsSpec) -> Fitting:
    """What states that are kept fit to."""
    return Fitting(by=make.vector(spec.hidden), norm=None if streams.joined else make.vector(spec.hidden))


def of_end(make: Allocator, spec: ModelSpec) -> Mixing | GatedMixing | None:
    """What weighs streams behind the last layer."""
    it = spec.streams
    if isinstance(it, GatedStreamsSpec):
        return allocate_gated(make, spec, it, gives=False)
    if not isinstance(it, StreamsSpec) or not it.weighted_end:
        return None
    fn = make.matrix(FORMATS["f32"], it.count, it.count * spec.hidden)
    return Mixing(fn=fn, base=make.vector(it.count), scale=make.vector(1))
