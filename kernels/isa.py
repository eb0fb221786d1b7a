"""What this CPU and the build of the C++ kernels can do, without torch: a plan needs it, and no tensor.

Which of it is used says a `Context` (`context.py`).
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from . import _cpu


@cache
def available_isas() -> tuple[str, ...]:
    """Instruction sets that this build and this CPU have, slowest first."""
    return tuple(_cpu.available_isas())


def cpu_features() -> list[str]:
    """The CPU's features that decide on an instruction set."""
    return list(_cpu.cpu_features())


@cache
def kernels_digest() -> str:
    """What tells the built kernels from others: 16 hexadecimal digits."""
    return hashlib.sha256(Path(_cpu.__file__).read_bytes()).hexdigest()[:16]
