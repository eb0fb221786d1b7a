"""The program that holds headrace and llama.cpp against transformers, on the side that needs no llama.cpp."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import same_as_llama


def test_a_case_without_llama_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_as_llama, "COUNT", 4)
    assert same_as_llama.compare("qwen35moe", *same_as_llama.CASES["qwen35moe"], sys.executable)
    out = capsys.readouterr().out
    assert "4 of 4" in out
    assert "No module named 'llama_cpp'" in out or "4 of 4" in out.replace("4 of 4", "", 1)


def test_a_line_counts_up_to_the_first_other_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tokens of the prompt's 17 rows and behind agree; logits are compared up to there."""
    monkeypatch.setattr(same_as_llama, "COUNT", 3)
    ids = [*same_as_llama.PROMPT, 4, 5, 6]
    wanted = np.zeros((19, 8), np.float32)
    wanted[0, 0] = 10
    other = wanted.copy()
    other[3, 1], other[18:] = 0.5, 7  # what was said after the first other token is of no account
    assert same_as_llama.line([4, 9, 6], other, ids, wanted) == "1 of 3, 5.0e-02"


def test_it_starts_as_its_first_lines_say() -> None:
    """Without the folders that pytest knows."""
    done = subprocess.run(
        [sys.executable, same_as_llama.__file__, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
