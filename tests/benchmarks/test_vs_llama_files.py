"""`benchmarks/vs_llama_files.py` without llama.cpp: its files, what it calls a near tie, what it calls wrong."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import demo_files
import near_ties
import numpy as np
import peer_llama
import pytest
import torch
import vs_llama_files
from gguf_files import gguf

from headrace import LLM

IDS = [40, 12, 900, 77, 1301, 5]


def test_the_demo_as_gguf_is_the_demo(tmp_path: Path) -> None:
    path, twin = tmp_path / "plain.gguf", tmp_path / "twin.gguf"
    demo_files.write_plain(path)
    demo_files.write_twin(path, twin)
    assert demo_files.types(path) == {"F32": 50}
    with LLM(path) as of_file, LLM(twin) as of_twin, LLM("demo", dtype="float32") as demo:
        expected = demo.logits(IDS)
        assert torch.equal(of_file.logits(IDS), expected)
        assert torch.equal(of_twin.logits(IDS), expected)
        text = "In the beginning it isn't 1813.\n"
        assert of_file.tokenizer.encode(text) == demo.tokenizer.encode(text)


def test_columns_of_all_experts_are_counted(tmp_path: Path) -> None:
    demo_files.write_plain(tmp_path / "m.gguf")
    found = demo_files._columns(tmp_path / "m.gguf")
    assert found["blk.0.ffn_down_exps.weight"] == 16 * 64
    assert found["blk.6.attn_q.weight"] == 256
    assert not any("norm" in name for name in found)
    assert len(gguf.GGUFReader(tmp_path / "m.gguf").tensors) > len(found)


def rows(*leads: float) -> Any:
    """Logits of two tokens; the first leads by so much."""
    return np.array([[lead, 0.0] for lead in leads], dtype=np.float32)


def test_where_two_texts_part() -> None:
    found = near_ties.first_difference(3, [0, 0, 0], rows(1, 0.25, 1), [0, 1, 0], rows(1, -0.5, 1))
    assert found == near_ties.Difference(3, 1, 0, 1, 0.25, -0.5)
    assert near_ties.first_difference(3, [0, 0], rows(1, 1), [0, 0], rows(2, 2)) is None


def test_a_near_tie_is_one_for_everybody() -> None:
    """One engine that is sure of itself where exact arithmetic is not is wrong, and so is the other way round."""
    tie = near_ties.Difference(0, 0, 1, 2, 0.1, -0.1, 0.05)
    assert tie.is_near_tie(0.1)
    assert "near tie" in tie.line(0.1)
    for field in ("lead_ours", "lead_theirs", "lead_exact"):
        assert not replace(tie, **{field: 0.4}).is_near_tie(0.1)
    assert "NOT EXPLAINED" in replace(tie, lead_exact=0.4).line(0.1)


def test_how_far_leads_move() -> None:
    exact, rounded = rows(*[1.0] * 200), rows(*[1.0] * 190, *[1.5] * 10)
    moves = near_ties.lead_moves(exact, rounded)
    assert moves.tolist() == [0.0] * 190 + [0.5] * 10
    assert near_ties.spread(moves) == {"median": 0, "of_99_percent": 0.5, "largest": 0.5}


def row(**changes: Any) -> dict[str, Any]:
    values = dict.fromkeys(("llama_exact", "ours_exact", "ours", "llama"), 20.0)
    texts = {"same": 19, "near_ties": 1, "differences": [{}]}
    found = {
        "same_tokens": True, "perplexity": values, "logits": {"ours_exact": {"relative": 1e-6}},
        "texts": {"exact": texts, "as_used": texts},
    }  # fmt: skip
    return {**found, **changes}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"same_tokens": False}, "token ids differ"),
        ({"logits": {"ours_exact": {"relative": 1e-3}}}, "exact logits differ by 0.001"),
        ({"perplexity": {**row()["perplexity"], "ours": 20.2}}, "perplexity is 20.2"),
        ({"texts": {"exact": {"same": 18, "near_ties": 1, "differences": [{}, {}]}}}, "1 texts (exact) part"),
    ],
)
def test_what_may_not_be_is_said(changes: dict[str, Any], said: str) -> None:
    assert vs_llama_files.wrong("Q8_0", row()) == []
    assert [said in line for line in vs_llama_files.wrong("Q8_0", row(**changes))] == [True]


def test_a_python_without_llama_cpp(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    alone = tmp_path / "python"
    alone.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    alone.chmod(0o755)
    assert not peer_llama.available(str(alone))
    assert f"{alone} has no llama-cpp-python" in capsys.readouterr().out
    llama = peer_llama.Llama(str(alone))
    with pytest.raises(RuntimeError, match=r"llama\.cpp ended with status 1 in build"):
        llama.call("build")
