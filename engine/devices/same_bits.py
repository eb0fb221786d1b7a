"""Which runs may be called deterministic: the same tokens for the same seed, whatever else is computed beside them.

Every sum of the C++ kernels has one order of its own, whichever tokens are beside it and however many threads there
are. Two ways of theirs go by more than a token, and such a run has neither: matrix tiles, which are taken from some
number of tokens on and round differently, and keys that are made of latents for prompts that are long enough. What is
computed elsewhere is refused by name, before memory is taken.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import OptionError
from ...loaders.spec import AttentionSpec, CompressedSpec, LatentSpec, ModelSpec
from ..config import EngineConfig
from ..placement.placement import Tier
from .device import Device


def check(config: EngineConfig, spec: ModelSpec, devices: Mapping[Tier, Device]) -> None:
    """Raises OptionError where a run is to be deterministic and cannot be: beside a GPU that was found without having
    been asked for, and of models that torch computes parts of."""
    if not config.deterministic:
        return
    if len(devices) > 1:
        raise OptionError(
            "deterministic is not promised beside a GPU, and one is there, where rounding goes by the pass: "
            "give device 'cpu', or leave it out"
        )
    if parts := _by_torch(spec):
        raise OptionError(
            f"deterministic is not promised for {spec.family}: torch computes its {', '.join(parts)}, in an "
            "order of sums that goes by all tokens of a pass; leave it out"
        )


def _by_torch(spec: ModelSpec) -> list[str]:
    """Parts of a model that no kernel of ours has."""
    attention = [mixer for mixer in spec.mixers if isinstance(mixer, AttentionSpec)]
    indexers = [mixer.indexer for mixer in spec.mixers if isinstance(mixer, LatentSpec) and mixer.indexer]
    needed = {
        "several residual streams": spec.streams is not None,
        "tables of runs of tokens": any(layer.grams for layer in spec.layers),
        "compressed entries": any(isinstance(mixer, CompressedSpec) for mixer in spec.mixers),
        "choice of blocks of keys": any(one.blocks for one in attention),
        "choice of runs of keys": any(one.pool > 1 for one in indexers),
    }
    return [what for what, is_needed in needed.items() if is_needed]
