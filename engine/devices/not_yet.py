"""What of a model a GPU's kernels do not compute yet, in words for a user."""

from __future__ import annotations

from collections.abc import Iterator

from ...kernels.recipes import SWIGLU
from ...loaders.spec import AttentionSpec, DeltaSpec, LatentSpec, MixerSpec, ModelSpec, MoeSpec
from .device import Device


def lacking(device: Device, spec: ModelSpec) -> list[str]:
    """The parts of a model that cannot be on this device."""
    found = [part for mixer in spec.mixers for part in _of_mixer(mixer)]
    if device.backend == "gpu":
        found += _of_experts(spec.moe)
    elif not device.is_host:  # what plays a GPU's part computes all, but gets no slots of states
        found = [part for part in found if part == DELTA]
    return list(dict.fromkeys(found)) if not device.is_host else []


DELTA = "the gated delta rule"


def _of_mixer(mixer: MixerSpec) -> Iterator[str]:
    if isinstance(mixer, LatentSpec):
        yield "latent attention"
    elif isinstance(mixer, DeltaSpec):
        yield DELTA
    elif isinstance(mixer, AttentionSpec):
        if mixer.window is not None:
            yield "attention over a window"
        if mixer.sinks:
            yield "attention sinks"


def _of_experts(moe: MoeSpec) -> Iterator[str]:
    if moe.scoring == "sigmoid" or moe.router_bias or moe.choice_bias or moe.groups > 1 or moe.scale != 1:
        yield "this model's router"
    if moe.activation != SWIGLU:
        yield "its activation"
    if moe.expert_bias:
        yield "biases of experts"
