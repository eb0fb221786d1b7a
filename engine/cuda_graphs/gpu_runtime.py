"""What pinned memory and graphs need of a GPU besides torch: the driver, a recorder of graphs, how jobs are written.

In one place, so that a test can put a driver without a GPU and a stand-in for graphs here, and run the rest as it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from ...errors import DeviceError
from ..devices.cuda_driver import LIBRARY, Driver
from ..devices.device import Device
from ..devices.streams import CudaStream, Stamps
from .capture import Launches, Recorder, TorchRecorder
from .mailbox_experts import Pack

DEPENDENT_LAUNCHES = "HEADRACE_DEPENDENT_LAUNCHES"  # 1: on


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Of one GPU. number: as the driver counts. pack: writes a job into the mailbox, in the recorder's stream; stream:
    stamps in that stream, also while it is captured; launches: how kernels of a step are launched."""

    driver: Driver
    number: int
    name: str
    recorder: Callable[[], Recorder]
    pack: Pack
    stream: Callable[[], Stamps]
    launches: Launches = field(default_factory=Launches)


class DependentLaunches(Launches):
    """Kernels of a step as `kernels/gpu/kernel.py` launches them within `dependent_launches`."""

    def within(self, wanted: bool) -> AbstractContextManager[None]:
        from ...kernels.gpu.kernel import dependent_launches

        return dependent_launches(wanted)

    def apart(self) -> None:
        from ...kernels.gpu.kernel import apart

        apart()


def find(device: Device | None) -> tuple[Runtime | None, str]:
    """The runtime of a GPU, or None and the reason."""
    if device is None:
        return None, "there is no GPU"
    if not device.is_cuda:
        return None, f"{device.name} is no GPU that a driver knows"
    try:
        driver, number = Driver(LIBRARY), int(device.place.index or 0)
        driver.make_current(number)
    except DeviceError as error:
        return None, str(error)
    return (
        Runtime(
            driver=driver,
            number=number,
            name=device.name,
            recorder=lambda: TorchRecorder(device.place),
            pack=_pack(device.backend),
            stream=lambda: CudaStream(device.place),
            launches=launches(device.backend, torch.cuda.get_device_capability(device.place), os.environ),
        ),
        "",
    )


def launches(backend: str, capability: tuple[int, int], environment: Mapping[str, str]) -> Launches:
    """Dependent ones where they were asked for, by HEADRACE_DEPENDENT_LAUNCHES=1, and the GPU and Triton have them."""
    if environment.get(DEPENDENT_LAUNCHES) != "1" or backend != "gpu":
        return Launches()
    from ...kernels.gpu.kernel import are_dependent_launches_offered

    return DependentLaunches() if are_dependent_launches_offered(capability) else Launches()


def _pack(backend: str) -> Pack:
    """One launch where Triton is there, else torch's copies."""
    if backend != "gpu":
        from .mailbox_experts import copy_job

        return copy_job
    from ...kernels.gpu.pack import pack

    return pack
