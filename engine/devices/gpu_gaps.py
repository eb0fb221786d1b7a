"""What the Triton kernels do not compute yet: models that need it are refused beside a GPU, before memory is taken."""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import OptionError
from ...loaders.spec import (
    AttentionSpec,
    CompressedSpec,
    ConvSpec,
    DeltaSpec,
    LatentSpec,
    ModelSpec,
    MoeSpec,
    SpaceSpec,
)
from ...loaders.weights.checkpoint import Checkpoint
from ..placement.placement import Tier
from .device import Device

WIDEST = 512  # a program has no room for more keys and values on GPUs with 99 KB of shared memory
TABLES = ("experts that a table of tokens chooses", "tables of runs of tokens")  # go by tokens, which stay in RAM


def checked(checkpoint: Checkpoint, devices: Mapping[Tier, Device]) -> Checkpoint:
    """The checkpoint. Raises OptionError, with all that is missing, where a device runs the Triton kernels; where one
    plays a GPU with other kernels, for what no pass beside the CPU has."""
    spec, missing = checkpoint.spec, _missing(checkpoint.spec)
    if not any(device.backend == "gpu" for device in devices.values()):
        missing = [what for what in missing if what in TABLES and len(devices) > 1]
    if missing:
        raise OptionError(
            f"{spec.family} does not run on a GPU yet: its kernels lack {', '.join(missing)}; run it with --device cpu"
        )
    return checkpoint


def _missing(spec: ModelSpec) -> list[str]:
    attention = [mixer for mixer in spec.mixers if isinstance(mixer, AttentionSpec)]
    needed = {
        f"heads of more than {WIDEST} numbers": any(one.head_dim > WIDEST for one in attention),
        "the indexer that chooses keys": any(isinstance(one, LatentSpec) and one.indexer for one in spec.mixers),
        "gates on heads of latents": any(isinstance(one, LatentSpec) and one.gate for one in spec.mixers),
        "the indexer that chooses blocks of keys": any(one.blocks for one in attention),
        "queries scaled by learned logarithms of positions": any(
            isinstance(one, LatentSpec) and one.by_logs for one in spec.mixers
        ),
        "attention to compressed entries": any(isinstance(one, CompressedSpec) for one in spec.mixers),
        TABLES[0]: any(isinstance(layer.ffn, MoeSpec) and layer.ffn.by_token for layer in spec.layers),
        "several residual streams": spec.streams is not None,
        TABLES[1]: any(layer.grams for layer in spec.layers),
        "decays by key": any(isinstance(one, DeltaSpec) and one.by_key for one in spec.mixers),
        "convolutions between gates": any(isinstance(one, ConvSpec) for one in spec.mixers),
        "state spaces": any(isinstance(one, SpaceSpec) for one in spec.mixers),
        "experts on a narrower latent": spec.moe.latent > 0,
        "experts without gates": not spec.moe.activation.gated,
        "layers of one part": any(layer.mixer is None or layer.ffn is None for layer in spec.layers),
    }
    return [what for what, is_needed in needed.items() if is_needed]
