"""A driver for Triton on a machine without a GPU: kernels are compiled for sm_90, and launches are counted, not run.

Good for what happens on the CPU's side: which variants of a kernel a program asks for, and how long Python takes. The
driver's one launcher takes no time; a real one adds a few microseconds to each launch.
"""

from __future__ import annotations

from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import GPUDriver
from triton.backends.nvidia import driver as nvidia
from triton.runtime import driver as active

H200 = {"max_shared_mem": 232448, "max_num_regs": 65536, "multiprocessor_count": 132, "warpSize": 32}


class Utils:
    """What asks a GPU, answered for an H200."""

    def load_binary(self, *_: Any) -> tuple[int, ...]:
        return 1, 1, 32, 0, 1024

    def get_device_properties(self, _device: int) -> dict[str, int]:
        return H200


class Launcher:
    """Launches nothing, and counts it."""

    launched = 0

    def __init__(self, _source: Any, _metadata: Any) -> None:
        pass

    def __call__(self, *_: Any) -> None:
        Launcher.launched += 1


class StubDriver(GPUDriver):
    """The one of an sm_90 that is not there."""

    def __init__(self, launcher: type = Launcher) -> None:
        self.utils, self.launcher_cls = Utils(), launcher
        self.get_device_capability, self.get_current_stream = (lambda _device: (9, 0)), (lambda _device: 0)
        self.get_current_device, self.set_current_device = (lambda: 0), (lambda _device: None)

    @staticmethod
    def is_active() -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cuda

    def map_python_to_cpp_type(self, ty: str) -> str:
        return nvidia.ty_to_cpp(ty)

    def get_benchmarker(self) -> Any:
        return None

    def get_empty_cache_for_benchmark(self) -> Any:
        return None

    def clear_cache(self, _cache: Any) -> None:
        pass


def use(launcher: type = Launcher) -> None:
    """Makes it Triton's driver in this process. Before kernels are launched."""
    active.set_active(StubDriver(launcher))
