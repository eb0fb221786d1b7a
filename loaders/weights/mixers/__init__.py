"""Weights of what looks at other tokens, one kind a file: what they are, how they are allocated, and which tensors of a
checkpoint fill them."""

from __future__ import annotations

from typing import Any

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


_OF: dict[type[MixerSpec], Any] = {
    AttentionSpec: attention, LatentSpec: latent, CompressedSpec: compressed, DeltaSpec: delta, ConvSpec: conv,
    SpaceSpec: space,
}  # fmt: skip


def allocate(make: Allocator, spec: MixerSpec, hidden: int, format_of: FormatOf) -> MixerWeights:
    """Uninitialised weights of a layer's mixer."""
    found: MixerWeights = _OF[type(spec)].allocate(make, spec, hidden, format_of)
    return found


def targets(spec: MixerSpec, names: TensorNames, it: MixerWeights, at: str, norm: Change) -> Named:
    """The tensors of a layer's mixer by name; `at`: the layer's number and a point; norm: what becomes of weights of
    norms."""
    found: Named = _OF[type(spec)].targets(spec, names, it, at, norm)
    return found
