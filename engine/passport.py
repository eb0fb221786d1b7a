"""Where a result comes from: processor, memory, versions, command, date. Goes into every results file."""

from __future__ import annotations

import datetime
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from ..kernels import cpu
from .profile import cpu_name

PACKAGES = ("headrace", "torch", "numpy", "tokenizers", "transformers", "llama-cpp-python", "kt-kernel")


def passport() -> dict[str, Any]:
    """Facts of this run; no names of hosts, users or folders."""
    return {
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cpus": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "isa": cpu.isa(),
        "threads": cpu.threads(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "versions": {name: v for name in PACKAGES if (v := _version(name)) is not None},
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
