"""The machine as the engine uses it: threads, huge pages, nodes of memory. What it gives is measured elsewhere
(`measure/kernel_rates.py`, `bench/overhead.py`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType

from torch import Tensor

from ...loaders.weights.model_weights import ModelWeights

HUGE_FROM = 8 << 20  # smaller tensors are not worth a huge page


def cpu_kernels() -> ModuleType:
    """The C++ backend as a module, for what is not an op: threads, ISA, raw reads."""
    from ...kernels import cpu

    return cpu


def set_threads(threads: int | None) -> None:
    """Sets the threads of the CPU kernels; None is one per core, whatever an earlier model asked for."""
    cpu_kernels().set_threads(threads or default_threads())


@cache
def default_threads() -> int:
    """Threads that the kernels start with: one per core that this process may use."""
    return int(cpu_kernels().threads())


def advise_huge(weights: ModelWeights) -> dict[str, bool]:
    """Asks for huge pages under every large tensor; whether the system agreed, by name."""
    advise: Callable[[Tensor], bool] = cpu_kernels().advise_huge
    return {name: advise(t) for name, t in large_in_ram(weights).items()}


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
