"""Whether a model's layer for multi-token prediction is loaded: where it was asked for, or where it may come to pay."""

from __future__ import annotations

from collections.abc import Mapping

from ....loaders.weights.mtp.asked import MtpAsked
from ...config import EngineConfig
from ...devices.device import Device
from ...placement.placement import Tier


def of(config: EngineConfig, devices: Mapping[Tier, Device]) -> MtpAsked | None:
    """What is asked of the files; None: nothing. While a trace is recorded nothing is drafted. By itself it is used
    where seconds of passes can be predicted: with everything in RAM, on a machine that was measured."""
    if config.trace is not None or config.speculate not in ("auto", "mtp"):
        return None
    if config.speculate == "mtp":
        return MtpAsked(must=True, file=config.mtp)
    in_ram = len(devices) == 1 and config.hosts is None and config.asked_placement.kind != "disk"
    return MtpAsked(must=False, file=config.mtp) if in_ram and config.kernels != "reference" else None
