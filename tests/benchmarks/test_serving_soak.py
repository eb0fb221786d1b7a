"""A short soak of a server in a process of its own, and that the soak would see what grows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import serving_soak


def test_a_server_keeps_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Memory may grow here: caches of a server that has just started are not full."""
    file = tmp_path / "soak.json"
    short = ["--requests", "120", "--clients", "4", "--samples", "3", "--minutes", "1", "--most-growth", "100"]
    assert serving_soak.main([*short, "--json", str(file)]) == 0, capsys.readouterr().out
    found = json.loads(file.read_text())
    assert found["requests"] >= 120
    statuses = {name.split()[-1] for name in found["answers"]}
    assert {"200", "400", "404", "left"} >= statuses
    assert len(found["samples"]) == 7


REST: dict[str, Any] = {
    "requests": 50, "rss_mb": 300.0, "threads": 4, "files": 7, "slots": 0, "running": 0, "pages_held": 0.0,
    "pages_idle": 9,
}  # fmt: skip


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, []),
        ({"rss_mb": 302.0, "pages_idle": 200}, []),
        ({"rss_mb": 320.0}, ["memory: 20.00 MB more behind the warm-up"]),
        ({"threads": 5, "files": 8}, ["threads: 4 at rest, 5 at the end", "files: 7 at rest, 8 at the end"]),
        ({"slots": 1, "pages_held": 0.1}, ["slots: 1 at the end", "pages_held: 0.1 at the end"]),
    ],
)
def test_what_grows_is_said(more: dict[str, Any], said: list[str]) -> None:
    busy = {**REST, "threads": 9, "slots": 5, "busy": True}
    samples = [{**REST, "requests": 0, "rss_mb": 200.0}, busy, REST, busy, {**REST, "requests": 100, **more}]
    assert serving_soak.grown(samples, 8.0) == said
