"""Compiles `cpp/fake_cuda.cpp`: a library with the driver's calls, on plain memory, with threads as streams."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from compiled import compiled

SOURCE = Path(__file__).parent / "cpp" / "fake_cuda.cpp"
FLAGS = ["-std=c++17", "-O1", "-shared", "-fPIC", "-pthread", "-Wall", "-Werror"]


def build() -> Path:
    """The library, compiled against the cuda.h that comes with Triton; skips the test where that is missing."""
    found = importlib.util.find_spec("triton")
    header = Path(found.origin or "").parent / "backends/nvidia/include/cuda.h" if found else Path("/none")
    if not header.is_file():
        pytest.skip("no cuda.h: it comes with Triton")
    return compiled("libcuda.so.1", [SOURCE], [*FLAGS, f"-I{header.parent}"], [header])
