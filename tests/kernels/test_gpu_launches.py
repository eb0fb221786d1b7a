"""How kernels are launched: the variant that Triton would take, found without asking it again; weights seen once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from busy import HANG_S

pytest.importorskip("triton", reason="the GPU kernels need Triton", exc_type=ImportError)
from headrace.kernels import FORMATS, ExpertLayout, gpu
from headrace.kernels.gpu import launch
from headrace.kernels.packed import ExpertBank, Matrix

ROOT = Path(__file__).parents[2]


@cache
def child(script: str, *arguments: str) -> Any:
    """What a script beside this file prints, which launches compiled kernels with a driver that does nothing."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(ROOT / "build" / "triton-cache"), "PYTHONPATH": str(ROOT / "benchmarks")}
    command = [sys.executable, str(Path(__file__).parent / script), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_second_launch_is_what_triton_chose_at_the_first() -> None:
    found = child("launched_twice.py")
    assert found["launches"] > 15
    assert found["differ"] == []


def test_dependent_launches_are_made_where_they_are_wanted() -> None:
    """Not the first one, since what is before it may be no kernel, nor the one behind a wait for the CPU."""
    found = child("launched_twice.py")["dependent"]
    assert found["early"] == [False, *[False, True, True, False, True], *[False] * 5, False]
    assert found["offered"] == [False, True, True]


def test_a_dependent_kernel_waits_before_it_does_anything() -> None:
    orders = child("launched_twice.py")["dependent"]["orders"]
    assert len(orders) >= 6
    for wait, go_on, first in orders:
        assert (wait, go_on) == ("griddepcontrol.wait", "griddepcontrol.launch_dependents")
        assert "griddepcontrol" not in first


def test_memory_that_begins_anywhere_gets_a_variant_of_its_own() -> None:
    aligned, not_aligned, again = child("launched_twice.py")["aligned"]
    assert aligned == again != not_aligned


def test_what_is_compiled_ahead_is_not_compiled_again() -> None:
    """Nor is anything launched for it. A variant that cannot be compiled ends nothing."""
    found = child("launched_twice.py")["ahead"]
    assert found.pop("failed") == ["_rmsnorm"]
    assert found == {"new": [1, 0], "said": [[1, 1], [1, 1]], "left": 0, "silent": True, "launched": 1}


@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_weights_are_looked_at_once(name: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Views of a matrix or a bank are made at its first use, not at every call."""
    form = FORMATS[name]
    matrix = Matrix.empty(form, 8, 64)
    bank = ExpertBank.empty(ExpertLayout(format=form, hidden=64, width=32), 4)
    for part in (matrix, bank):
        part.data.zero_()
    x, ids, weights = torch.zeros(tokens, 64), torch.zeros(tokens, 2, dtype=torch.int32), torch.ones(tokens, 2)

    def both() -> None:
        gpu.linear(x, matrix)
        gpu.experts(x, ids, weights, bank)

    both()
    monkeypatch.setattr(launch, "stored", lambda *_: pytest.fail("looked at again"))
    both()


def test_few_variants_serve_all_sizes() -> None:
    """Batches of 1 to 16, contexts of 1 to 1024 pages, prompts of 2 to 512 tokens: before integers that vary were left
    out of what a variant is made for, it took 57."""
    found = child("variants_of_a_sweep.py")
    assert sum(found.values()) <= 33, found
    assert max(found.values()) <= 4, found


@pytest.mark.parametrize("variant", ["qwen3_moe", "gpt_oss", "deepseek_v2-groups", "qwen3_next"])
def test_loading_compiles_all_that_passes_ask_for(variant: str, checkpoints: Callable[[str], Path]) -> None:
    found = child("variants_of_a_sweep.py", str(checkpoints(variant)))
    assert found["asked"] > 15
    assert found["missing"] == []
