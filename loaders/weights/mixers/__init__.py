"""Weights of what looks at other tokens, one kind a file: what they are, how they are allocated, and which tensors of a
checkpoint fill them."""

from __future__ import annotations

from ...families.family import TensorNames
from ...spec import AttentionSpec, CompressedSpec, ConvSpec, DeltaSpec, LatentSpec, MixerSpec, SpaceSpec
from . import attention, compressed, conv, delta, latent, space
from .allocator import Allocator, FormatOf
from .attention import AttentionWeights
from .compressed import CompressedWeights
from .conv import ConvWeights
from .delta import DeltaWeights
from .latent import LatentWeights
from .space import SpaceWeights
from .target import Change, Named

__all__ = [
    "AttentionWeights", "CompressedWeights", "ConvWeights", "DeltaWeights", "LatentWeights", "MixerWeights",
    "SpaceWeights", "allocate", "targets",
]  # fmt: skip

MixerWeights = AttentionWeights | LatentWeights | CompressedWeights | DeltaWeights | ConvWeights | SpaceWeights


def allocate(make: Allocator, spec: MixerSpec, hidden: int, format_of: FormatOf) -> MixerWeights:
    """Uninitialised weights of a layer's mixer."""
    if isinstance(spec, AttentionSpec):
        return attention.allocate(make, spec, hidden, format_of)
    if isinstance(spec, LatentSpec):
        return latent.allocate(make, spec, hidden, format_of)
    if isinstance(spec, CompressedSpec):
        return compressed.allocate(make, spec, hidden, format_of)
    if isinstance(spec, ConvSpec):
        return conv.allocate(make, spec, hidden, format_of)
    if isinstance(spec, SpaceSpec):
        return space.allocate(make, spec, hidden, format_of)
    return delta.allocate(make, spec, hidden, format_of)


def targets(spec: MixerSpec, names: TensorNames, it: MixerWeights, at: str, norm: Change) -> Named:
    """The tensors of a layer's mixer by name; `at`: the layer's number and a point; norm: what becomes of weights of
    norms."""
    if isinstance(spec, AttentionSpec) and isinstance(it, AttentionWeights):
        return attention.targets(spec, names, it, at, norm)
    if isinstance(spec, LatentSpec) and isinstance(it, LatentWeights):
        return latent.targets(spec, names, it, at, norm)
    if isinstance(spec, CompressedSpec) and isinstance(it, CompressedWeights):
        return compressed.targets(spec, names, it, at, norm)
    if isinstance(spec, ConvSpec) and isinstance(it, ConvWeights):
        return conv.targets(spec, names, it, at, norm)
    if isinstance(spec, SpaceSpec) and isinstance(it, SpaceWeights):
        return space.targets(spec, names, it, at, norm)
    assert isinstance(spec, DeltaSpec)
    assert isinstance(it, DeltaWeights)
    return delta.targets(spec, names, it, at, norm)
