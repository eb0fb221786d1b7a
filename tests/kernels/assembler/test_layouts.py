"""Threads give the assembler four neighbouring weights of a row at a time: it takes how far their bits move from the
first of them, and what Triton packs is what a thread has one after the other, in whatever layout it chose."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from busy import HANG_S

pytest.importorskip("triton", reason="the GPU kernels need Triton", exc_type=ImportError)

ROOT = Path(__file__).parents[3]
KINDS = ("q4_0", "q2_k", "q3_k", "q6_k", "q5_0")  # of planes: 4, 2 with minimums, 2 + 1, 4 + 2 and 4 + 1 bits


def neighbours(layout: str) -> int:
    """How many numbers of a row a thread has one after the other."""
    if of_products := re.search(r"dot_op<\{opIdx = 0, .*kWidth = (\d+)", layout):
        return int(of_products[1])
    blocked = re.search(r"blocked<\{sizePerThread = \[\d+, \d+, (\d+)\].*order = \[2,", layout)
    return int(blocked[1]) if blocked else 0


def test_four_weights_of_a_word_are_neighbours() -> None:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(ROOT / "build" / "triton-cache"), "PYTHONPATH": str(ROOT / "benchmarks")}
    command = [sys.executable, str(Path(__file__).with_name("layouts_of_words.py")), *KINDS]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name for name, _, _ in found} == set(KINDS)
    for name, given, layout in found:
        assert neighbours(layout) >= 4, f"{name}: {given} in {layout}"
