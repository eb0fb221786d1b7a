"""What pinned memory and graphs need of a GPU besides torch: the driver, a recorder of graphs, how jobs are written.

In one place, so that a test can put a driver without a GPU and a stand-in for graphs here, and run the rest as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...errors import DeviceError
from ..devices.cuda_driver import LIBRARY, Driver
from ..devices.device import Device
from ..devices.streams import CudaStream, Stamps
from .capture import Recorder, TorchRecorder
from .mailbox_experts import Pack


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Of one GPU. number: as the driver counts. pack: writes a job into the mailbox, in the recorder's stream; stream:
    stamps in that stream, also while it is captured."""

    driver: Driver
    number: int
    name: str
    recorder: Callable[[], Recorder]
    pack: Pack
    stream: Callable[[], Stamps]


def find(device: Device) -> tuple[Runtime | None, str]:
    """The runtime of a device, or None and the reason."""
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
        ),
        "",
    )


def _pack(backend: str) -> Pack:
    """One launch where Triton is there, else torch's copies."""
    if backend != "gpu":
        from .mailbox_experts import copy_job

        return copy_job
    from ...kernels.gpu.pack import pack

    return pack
