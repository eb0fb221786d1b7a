"""Compiling before the first pass: what ops would launch on tensors without memory, compiled and loaded now.

Ops decide by shapes alone what they launch, so calling them on `meta` tensors says which variants of which kernels a
pass of that size takes. Triton keeps what it compiles in its cache, so a second start only loads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from .kernel import Kernel, watched

Launch = tuple[Kernel, tuple[Any, ...], dict[str, Any]]
Progress = Callable[[int, int], None]  # variants done, variants in all


class Compiled(NamedTuple):
    """How many variants were not there yet, and which could not be made, with the reason."""

    new: int
    failed: list[str]


def wanted(calls: Iterable[Callable[[], object]]) -> list[Launch]:
    """One launch for every variant that the calls take, in their order."""
    found: dict[tuple[Any, ...], Launch] = {}

    def take(kernel: Kernel, args: tuple[Any, ...], constants: dict[str, Any]) -> None:
        found.setdefault((kernel, *kernel.key(0, args, constants)), (kernel, args, constants))

    with watched(take):
        for call in calls:
            call()
    return list(found.values())


def compile_all(launches: list[Launch], progress: Progress | None = None) -> Compiled:
    """Compiles and loads them for the current device. One that fails ends nothing: no pass may ever need it, and one
    that does raises then."""
    new, failed = 0, []
    for done, (kernel, args, constants) in enumerate(launches, 1):
        try:
            new += kernel.compile(args, constants)
        except Exception as error:  # Triton's errors have no class in common, nor have the driver's
            failed.append(f"{kernel.__name__}: {type(error).__name__}: {error}")
        if progress is not None:
            progress(done, len(launches))
    return Compiled(new, failed)
