"""`benchmarks/draft_speed.py` on tiny shapes: it ends. Of what caches hold nothing is predicted."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import draft_speed
import pytest

from headrace import LLM

Checkpoints = Callable[[str], Path]
DRAFTERS = [("script", "qwen3_moe", 3), ("mtp", "qwen3_next", 4)]


@pytest.mark.parametrize(("drafter", "variant", "layers"), DRAFTERS)
def test_it_measures_with_and_without(
    drafter: str, variant: str, layers: int, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, config = tmp_path / "found.json", tmp_path / "config.json"
    settings = json.loads((checkpoints(variant) / "config.json").read_text())
    config.write_text(json.dumps({**settings, "vocab_size": 4096}))
    words = f"x --drafter {drafter} --model {config} --layers {layers} --rounds 1 --rates 0.9 --batches 1,2"
    monkeypatch.setattr(sys, "argv", [*words.split(), "--json", str(found)])
    monkeypatch.setattr(draft_speed, "NEW", 40)
    tiny = {"expert_format": "bf16", "dense_format": "bf16", "max_context": 128}
    monkeypatch.setattr(draft_speed, "LLM", lambda source, **options: LLM(source, **{**options, **tiny}))
    draft_speed.main()
    rows = json.loads(found.read_text())["rows"]
    assert [row["batch"] for row in rows] == [1, 2]
    assert all(row["on"] > 0 and row["off"] > 0 and row["predicted"] is None for row in rows)
