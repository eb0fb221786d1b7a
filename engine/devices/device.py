"""The devices of a run: what a tier is on this machine, and which of them the options ask for.

A `Device` is a tier with memory, kernels and a way to put tensors there. `cpu` is RAM; `cuda` a GPU with the Triton
kernels; `simulated` plays a GPU's part in RAM, with the kernels of the CPU: the same code decides, loads, splits,
computes and books, so that every placement can be tried, and is tested, without a GPU. What is asked for and not there
is an error.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import kernels
from ...errors import OptionError
from ...loaders.memory import GB, free_memory
from ..config import EngineConfig
from ..placement.placement import Tier
from ..placement.tier_memory import of_gpu
from .cuda_driver import take_more_queues

NO_TRITON = "its kernels need Triton, which is not installed: pip install 'headrace[gpu]'"
OLDEST = (8, 0)  # compute capability that the kernels are written for
INSTALL = "install a CUDA build of torch, or take --device cpu (--device simulated tries a placement in RAM)"
WITHOUT = "install a CUDA build of torch, leave the option out, or try it in RAM with --device simulated"


@dataclass(frozen=True, kw_only=True)
class Device:
    """One tier. `place`: torch's device; `backend`: which kernels compute there; `free`: bytes that may be
    taken; `link_bytes_s`: of one that is played, how fast experts are copied to it (None: as fast as RAM)."""

    tier: Tier
    place: torch.device
    backend: str
    ops: kernels.Ops
    name: str
    free: int
    link_bytes_s: float | None = None

    @property
    def is_cuda(self) -> bool:
        return self.place.type == "cuda"

    @property
    def is_host(self) -> bool:
        """Whether this is plain RAM, and nothing crosses a link to it."""
        return self.tier is Tier.CPU

    def put(self, tensor: Tensor) -> Tensor:
        """The tensor on this device; a copy from pinned memory goes on while the host does."""
        return tensor.to(self.place, non_blocking=True)

    def current(self) -> AbstractContextManager[Any]:
        """Makes this GPU the one that kernels are launched on."""
        return torch.cuda.device(self.place) if self.is_cuda else contextlib.nullcontext()

    def wait(self) -> None:
        """Returns when everything that was started here is done."""
        if self.is_cuda:
            torch.cuda.current_stream(self.place).synchronize()


class Event:
    """A point in a device's work that the host can wait for; one that was never set is reached. In RAM everything
    before it is done already."""

    def __init__(self, place: torch.device) -> None:
        self.event = torch.cuda.Event() if place.type == "cuda" else None
        self.place = place

    def set(self) -> None:
        if self.event is not None:
            self.event.record(torch.cuda.current_stream(self.place))

    def wait(self) -> None:
        if self.event is not None:
            self.event.synchronize()


def ram(ops: kernels.Ops, name: str, config: EngineConfig) -> Device:
    """The CPU's own memory: as much as the system says is free, or as was asked for."""
    place, free = torch.device("cpu"), free_memory() if config.ram_bytes is None else config.ram_bytes
    return Device(tier=Tier.CPU, place=place, backend=name, ops=ops, name="RAM", free=free)


def find(config: EngineConfig, host: Device) -> dict[Tier, Device]:
    """The devices that the options ask for, RAM among them; RAM alone is a run on the CPU.

    "auto" is the first GPU where there is one that can be used. Raises OptionError for a GPU that is not there, with
    what is, and for kernels that cannot be had.
    """
    device = config.device
    if device == "cpu" or config.is_on_cpu:
        return {Tier.CPU: host}
    if device == "auto" and not config.wants_gpu and why_no_gpu():
        return {Tier.CPU: host}
    count = 2 if config.has_two_gpus else 1
    if device.startswith("simulated"):
        found = [_simulated(tier, config, host) for tier in (Tier.GPU0, Tier.GPU1)[:count]]
    else:
        found = _gpus(config, count)
    return {Tier.CPU: host, **{one.tier: one for one in found}}


def why_no_gpu() -> str:
    """Why the first GPU is not used where nobody asked for it; "" where it is."""
    if not torch.cuda.is_available() or not torch.cuda.device_count():
        return "torch sees none"
    if not _has_triton():
        return NO_TRITON
    capability = torch.cuda.get_device_capability(0)
    if capability < OLDEST:
        has, needed = (f"{major}.{minor}" for major, minor in (capability, OLDEST))
        return f"it is of compute capability {has}, and the kernels need {needed}"
    return ""


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _simulated(tier: Tier, config: EngineConfig, host: Device) -> Device:
    name = config.device.partition(":")[2] or host.backend
    if name == "gpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise OptionError("device 'simulated:gpu' runs the Triton kernels in numpy: set TRITON_INTERPRET=1 before")
    ops = host.ops if name == host.backend else kernels.load(name)
    free = _limited(config, host.free)
    link = None if config.link_limit is None else config.link_limit * GB
    place = torch.device("cpu")
    return Device(tier=tier, place=place, backend=name, ops=ops, name="simulated", free=free, link_bytes_s=link)


def _gpus(config: EngineConfig, count: int) -> list[Device]:
    """The GPU that was asked for, and the next one if two are wanted and there."""
    take_more_queues()
    asked = f"device is {config.device!r}" if config.device != "auto" else f"{config.gpu_option} needs a GPU"
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not there:
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU alone"
        remedy = INSTALL if config.device != "auto" else WITHOUT
        raise OptionError(f"{asked}, but torch ({torch.__version__}, {build}) sees no GPU here: {remedy}")
    first = int(config.device.partition(":")[2] or 0)
    if first >= there:
        raise OptionError(f"{asked}, but torch sees {there} GPU(s), cuda:0 to cuda:{there - 1}: choose one of them")
    for name in ("tensor_split", "second_vram"):
        if getattr(config, name) is not None and first + 2 > there:
            raise OptionError(
                f"{name} needs cuda:{first} and cuda:{first + 1}, torch sees {there} GPU(s): leave it out"
            )
    if config.kernels != "reference" and not _has_triton():
        raise OptionError(f"{asked}, and {NO_TRITON}")
    name = "reference" if config.kernels == "reference" else "gpu"
    numbers = range(first, min(first + count, there))
    return [_gpu(tier, n, name, config) for tier, n in zip((Tier.GPU0, Tier.GPU1), numbers, strict=False)]


def _gpu(tier: Tier, number: int, name: str, config: EngineConfig) -> Device:
    free, _ = torch.cuda.mem_get_info(number)
    place = torch.device("cuda", number)
    what = f"{torch.cuda.get_device_name(number)} (cuda:{number})"
    limit = _limited(config, of_gpu(free))
    return Device(tier=tier, place=place, backend=name, ops=kernels.load(name), name=what, free=limit)


def _limited(config: EngineConfig, free: int) -> int:
    """Bytes that may be taken: what is free, or less if a limit was asked for."""
    return max(0, free if config.vram_limit is None else min(free, int(config.vram_limit * GB)))
