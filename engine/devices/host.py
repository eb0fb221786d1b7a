"""The machine as the engine uses it: huge pages, nodes of memory. What it gives is measured elsewhere
(`measure/kernel_rates.py`, `bench/overhead.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import ModuleType

import torch
from torch import Tensor

from ...kernels import limits
from ...kernels.context import CORES, THREADS
from ...loaders.weights.model_weights import ModelWeights

TORCH_THREADS = torch.get_num_threads()  # as the process had it before a model was loaded
HUGE_FROM = 8 << 20  # smaller tensors are not worth a huge page


def cpu_kernels() -> ModuleType:
    """The C++ kernels as a module, for what is not an op: pages of memory, raw reads."""
    from ...kernels import cpu

    return cpu


def advise_huge(weights: ModelWeights) -> dict[str, bool]:
    """Asks for huge pages under every large tensor; whether the system agreed, by name."""
    advise: Callable[[Tensor], bool] = cpu_kernels().advise_huge
    return {name: advise(t) for name, t in large_in_ram(weights).items()}


def all_huge(tensors: Iterable[Tensor]) -> bool:
    """Asks for huge pages under each of these; whether the system agreed every time."""
    granted = [cpu_kernels().advise_huge(one) for one in tensors]  # all are asked for, also after a refusal
    return all(granted)


def large_in_ram(weights: ModelWeights) -> dict[str, Tensor]:
    """The tensors in RAM that are worth a huge page."""
    return {name: t for name, t in weights.named().items() if t.nbytes >= HUGE_FROM and t.device.type == "cpu"}


def spread_over_nodes(weights: ModelWeights) -> int:
    """Deals out the pages of every large tensor over the nodes of memory; over how many: 1 where there is one node, 0
    where there are more and the system refused."""
    cpu = cpu_kernels()
    nodes: list[int] = cpu.numa_nodes()
    if len(nodes) < 2:
        return 1
    granted = [
        cpu.interleave(t, nodes) for t in large_in_ram(weights).values()
    ]  # all are asked for, also after a refusal
    return len(nodes) if all(granted) else 0


def crowding(threads: int) -> str:
    """What is to be said of more threads than have a core and time on it; "" of others."""
    if threads <= THREADS:
        return ""
    cores = f"{CORES} core{'s' * (CORES != 1)}"
    return f"threads is {threads}, and this process may use {cores}{quota()}: they will take turns"


def quota() -> str:
    """The quota of processor time, where it is less than the cores have; else nothing."""
    found = limits.cpu_quota()
    return "" if found is None or found >= CORES else f" (its control group has the time of {found:g})"


def torch_threads(kernels: str, asked: int | None) -> int:
    """How many threads torch gets beside a backend. Two pools that spin on the same cores slow each other down: beside
    the C++ kernels it is one."""
    return 1 if kernels == "cpu" else asked or min(TORCH_THREADS, THREADS)


def use_torch_threads(count: int) -> None:
    """Sets them. torch has one number for the whole process, and the sums of reference kernels depend on it: each model
    looks at it before a pass, because one that was loaded since has its own."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
