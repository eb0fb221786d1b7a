"""Every allocation of the C++ kernels fails once, in every op; in a model's load and first tokens some do, of the
kernels and of torch: no crash, and the next call works. `HEADRACE_FAILING_STEP=1` tries every allocation of a model.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from compiled import COMPILER, ROOT, compiled

SOURCE = ROOT / "tests" / "fakes" / "cpp" / "failing_memory.cpp"
PROGRAM = Path(__file__).parent / "one_by_one.py"
FLAGS = ["-std=c++17", "-O1", "-shared", "-fPIC", "-pthread", "-Wall", "-Werror"]
SHARES = 2  # of the ops, and of the models, a test each: a process takes seconds to begin
# Of a model's allocations every so many-th fails, from another one on for each family: it is loaded twice for each.
KERNELS_STEP, TORCH_STEP = (int(os.environ.get("HEADRACE_FAILING_STEP", step)) for step in (28, 800))
FAMILIES = ("qwen3_moe", "deepseek_v3", "gemma4_text", "gpt_oss", "qwen3_next", "granitemoehybrid", "kimi_linear")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux" or COMPILER is None, reason="needs Linux and a compiler"),
    pytest.mark.skipif("HEADRACE_SANITIZER" in os.environ, reason="a sanitizer has an allocator of its own"),
]


def failures(*arguments: object) -> int:
    """How many allocations failed, after all of them ended as they may."""
    library = compiled("failing_memory.so", [SOURCE], FLAGS)
    env = {**os.environ, "LD_PRELOAD": str(library)}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(library), *map(str, arguments)],
        capture_output=True, text=True, env=env, check=False, timeout=7200, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 1, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    found = re.fullmatch(r"failures (\d+)", lines[0])
    assert found, lines[0]
    return int(found[1])


@pytest.mark.parametrize("first", range(SHARES))
def test_an_allocation_of_an_op_fails(first: int) -> None:
    assert failures("ops", first, SHARES) > 100, "the threads of a team alone are more"


@pytest.mark.parametrize("families", [FAMILIES[share::SHARES] for share in range(SHARES)])
def test_an_allocation_of_a_model_fails(families: tuple[str, ...], checkpoints: Callable[[str], Path]) -> None:
    found = failures("kernels", 1, KERNELS_STEP, *map(checkpoints, families))
    assert found >= len(families) * (30 // KERNELS_STEP)


def test_an_allocation_of_torch_fails(checkpoints: Callable[[str], Path]) -> None:
    families = ("deepseek_v3", "qwen3_next")
    assert failures("torch", 2, TORCH_STEP, *map(checkpoints, families)) >= len(families) * (1000 // TORCH_STEP)
