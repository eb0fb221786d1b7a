"""Where a result comes from: processor, memory, versions, command, date. Goes into every results file."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...kernels.context import Context

from .cpu_generation import cpu_generation

PACKAGES = ("headrace", "torch", "triton", "numpy", "tokenizers", "transformers", "llama-cpp-python", "kt-kernel")
DRIVER = Path("/proc/driver/nvidia/version")


def host() -> dict[str, Any]:
    """Facts of this run that need neither a package nor our extension; no names of hosts, users or folders."""
    return {
        "cpu_generation": cpu_generation(),
        "logical_cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "versions": {name: v for name in PACKAGES if (v := _version(name)) is not None},
        "command": shlex.join([Path(sys.argv[0]).name, *map(_without_folders, sys.argv[1:])]),
        "date": datetime.date.today().isoformat(),
    }


def passport(context: Context) -> dict[str, Any]:
    """Facts of a run of the C++ kernels in this context."""
    import psutil

    from ..bandwidth_model.profile import cpu_name

    return {
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "isa": context.isa,
        "threads": context.threads,
        **host(),
    }


def gpu_passport() -> dict[str, Any]:
    """Facts of a run of the Triton kernels on the current GPU."""
    import torch

    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": gpu.name,
        "multiprocessors": gpu.multi_processor_count,
        "capability": f"{gpu.major}.{gpu.minor}",
        "gpu_memory_gb": round(gpu.total_memory / 1e9, 1),
        "gpu_cache_mb": round(gpu.L2_cache_size / 1e6, 1),
        "cuda": torch.version.cuda,
        "driver": driver(),
        **host(),
    }


def driver(path: Path = DRIVER) -> str | None:
    """The version of NVIDIA's kernel module; None where there is none, or it says it in other words."""
    try:
        found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", path.read_text(encoding="utf-8"))
    except OSError:
        return None
    return found[1] if found else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _without_folders(argument: str) -> str:
    """An argument without where this machine keeps things: of an absolute path the name."""
    return Path(argument).name if Path(argument).is_absolute() else argument
