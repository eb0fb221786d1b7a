"""Compiles `tests/cpp/fake_cuda.cpp`: a library with the driver's calls, on plain memory, with threads as streams."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "cpp" / "fake_cuda.cpp"


def build(folder: Path) -> Path:
    """The library, compiled against the cuda.h that comes with Triton; skips the test where one of them is missing."""
    found = importlib.util.find_spec("triton")
    header = Path(found.origin or "").parent / "backends/nvidia/include/cuda.h" if found else Path("/none")
    if not header.is_file():
        pytest.skip("no cuda.h: it comes with Triton")
    compiler = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    library = folder / "libcuda.so.1"
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-pthread", "-Wall", "-Werror", f"-I{header.parent}"]
    done = subprocess.run(
        [str(compiler), *flags, str(SOURCE), "-o", str(library)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return library
