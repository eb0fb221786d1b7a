"""The Triton kernels in the interpreter of the target's Triton: the same cases, in a process that has its versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import target_versions
from busy import HANG_S

HERE = Path(__file__).parent


def run(*command: str) -> str:
    """What a Python with the target's versions prints."""
    env = os.environ | {"PYTHONPATH": str(target_versions.folder())}
    done = subprocess.run(
        [sys.executable, *command], env=env, cwd=HERE.parents[1], capture_output=True, text=True, timeout=HANG_S
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_folder_is_what_is_imported() -> None:
    where, version = run("-c", "import triton; print(triton.__file__, triton.__version__)").split()
    assert Path(where).is_relative_to(target_versions.FOLDER)
    asked = (HERE.parents[1] / "target.txt").read_text()
    assert f"triton=={version}\n" in asked


def test_cases_are_right() -> None:
    """The kernels whose products, sums and masks a compiler could see differently; others are the same in both."""
    chosen = "test_any_bytes or (test_format and (q4_k or q6_k or mxfp4))"
    chosen += " or (test_case and (linear or experts or route or attention) and not attention_block)"
    said = run("-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-k", chosen,
               str(HERE / "test_gpu_kernels.py"))  # fmt: skip
    assert " passed" in said
    assert "failed" not in said
