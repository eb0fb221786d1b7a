"""Whether a model's layer for multi-token prediction is loaded: where it was asked for, or where it may come to pay."""

from __future__ import annotations

from collections.abc import Mapping

from ....errors import OptionError
from ....loaders.weights.mtp.asked import MtpAsked
from ...config import EngineConfig
from ...devices.device import Device
from ...placement.placement import Tier


def of(config: EngineConfig, devices: Mapping[Tier, Device]) -> MtpAsked | None:
    """What is asked of the files; None: nothing. While a trace is recorded nothing is drafted. By itself it is used
    where seconds of passes can be predicted: with everything in RAM, on a machine that was measured. Raises OptionError
    where it was asked for beside a GPU."""
    if config.trace is not None or config.speculate not in ("auto", "mtp"):
        return None
    if config.speculate == "mtp":
        if len(devices) > 1:
            raise OptionError(
                "speculate is 'mtp', and there is a GPU: layers for multi-token prediction run on a CPU alone so far; "
                "give device 'cpu', or leave speculate out"
            )
        return MtpAsked(must=True, file=config.mtp)
    in_ram = len(devices) == 1 and config.hosts is None and config.asked_placement.kind != "disk"
    return MtpAsked(must=False, file=config.mtp) if in_ram and config.kernels != "reference" else None
