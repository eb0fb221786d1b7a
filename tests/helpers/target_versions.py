"""The versions of Triton and numpy of the machine that the GPU kernels are meant for, beside what is installed:
`target.txt` names them, and `make target` fills a folder. Whoever puts it on PYTHONPATH has them."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "build" / "target"


def folder() -> Path:
    """The folder; skips the test where there is none."""
    if not (FOLDER / "triton").is_dir():
        pytest.skip("the target's Triton is not in build/target: make target")
    return FOLDER
