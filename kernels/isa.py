"""The instruction set, the threads and the build of the C++ kernels, without torch: a plan needs them, and no tensor.

One instruction set serves the process, the best of the CPU or the one that HEADRACE_ISA names.
"""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

from ..errors import OptionError
from . import _cpu


def use_isa(name: str) -> None:
    """Switches the whole process to one of `available_isas()`."""
    if not _cpu.use_isa(name):
        there = ", ".join(available_isas())
        raise OptionError(f"HEADRACE_ISA={name} cannot be used: this CPU has {there}; unset it to get the best of them")


def isa() -> str:
    """The instruction set in use."""
    return str(_cpu.isa())


def available_isas() -> list[str]:
    """What this build and this CPU can do, slowest first."""
    return list(_cpu.available_isas())


def cpu_features() -> list[str]:
    """The CPU's features that decide on an instruction set."""
    return list(_cpu.cpu_features())


def threads() -> int:
    """Threads of the team; at first the physical cores that this process may use."""
    return int(_cpu.threads())


@cache
def kernels_digest() -> str:
    """What tells the built kernels from others: 16 hexadecimal digits."""
    return hashlib.sha256(Path(_cpu.__file__).read_bytes()).hexdigest()[:16]


if os.environ.get("HEADRACE_ISA"):
    use_isa(os.environ["HEADRACE_ISA"])
