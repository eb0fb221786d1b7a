"""`benchmarks/draft_speed.py` on tiny shapes: it ends, with what was expected beside what was measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import draft_speed
import pytest

from headrace import LLM

Checkpoints = Callable[[str], Path]
DRAFTERS = [("script", "qwen3_moe"), ("mtp", "qwen3_next")]


@pytest.mark.parametrize(("drafter", "variant"), DRAFTERS)
def test_it_measures_with_and_without(
    drafter: str, variant: str, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tmp_path / "found.json"
    words = f"x --drafter {drafter} --model {checkpoints(variant)} --layers 4 --rounds 1 --rates 0.9 --batches 1,2"
    monkeypatch.setattr(sys, "argv", [*words.split(), "--json", str(found)])
    monkeypatch.setattr(draft_speed, "NEW", 40)
    tiny = {"expert_format": "bf16", "dense_format": "bf16", "max_context": 128}
    monkeypatch.setattr(draft_speed, "LLM", lambda source, **options: LLM(source, **{**options, **tiny}))
    draft_speed.main()
    rows = json.loads(found.read_text())
    assert [row["batch"] for row in rows] == [1, 2]
    assert all(row["on"] > 0 and row["off"] > 0 and row["predicted"] > 0 for row in rows)
