"""Which runs may be called deterministic: the same tokens for the same seed, whatever else is computed beside them.

Every sum of the C++ kernels has one order of its own, whichever tokens are beside it and however many threads there
are. Two ways of theirs go by more than a token, and such a run has neither: matrix tiles, which are taken from some
number of tokens on and round differently, and keys that are made of latents for prompts that are long enough. What is
computed elsewhere is refused by name, before memory is taken.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import OptionError
from ..config import EngineConfig
from ..placement.placement import Tier
from .device import Device


def check(config: EngineConfig, devices: Mapping[Tier, Device]) -> None:
    """Raises OptionError where a run is to be deterministic and cannot be: beside a GPU that was found without having
    been asked for."""
    if not config.deterministic:
        return
    if len(devices) > 1:
        raise OptionError(
            "deterministic is not promised beside a GPU, and one is there, where rounding goes by the pass: "
            "give device 'cpu', or leave it out"
        )
