"""The Triton kernels in the interpreter of the target's Triton: the same cases, in a process that has its versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import target_versions
import turns
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


@pytest.mark.parametrize("chosen", ["attention", "not attention"])
def test_cases_are_right(chosen: str) -> None:
    """The kernels whose products, sums and masks a compiler could see differently, one case of each way through them;
    others are the same in both. In two parts, which two processes share."""
    said = run("-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", "versions", "-k", chosen,
               str(HERE / "test_gpu_kernels.py"), str(HERE / "fused"))  # fmt: skip
    assert " passed" in said
    assert "failed" not in said


def test_what_a_test_starts_has_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run of tests inside of a test waits for who waits for the test."""
    monkeypatch.setattr(turns, "LOCKS", tmp_path)
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    monkeypatch.delenv(turns.HELD, raising=False)
    code = (
        f"import pathlib, turns; turns.LOCKS = pathlib.Path({str(tmp_path)!r})\nwith turns.turn(alone=True): print(1)"
    )
    with turns.turn(alone=False):
        started = {**os.environ, "PYTHONPATH": str(Path(turns.__file__).parent)}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=started, capture_output=True, text=True, timeout=HANG_S, check=True)
    assert done.stdout == "1\n"
    assert turns.HELD not in os.environ
