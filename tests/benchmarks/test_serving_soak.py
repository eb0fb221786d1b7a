"""A short soak of a server in a process of its own, and that the soak would see what grows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import serving_soak


@pytest.mark.parametrize("tiny", [False, True])
def test_a_server_keeps_nothing(tiny: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Memory may grow here: caches of a server that has just started are not full."""
    file = tmp_path / "soak.json"
    short = ["--requests", "120", "--clients", "4", "--samples", "3", "--minutes", "1", "--most-growth", "100"]
    short += ["--tiny"] if tiny else []
    assert serving_soak.main([*short, "--json", str(file)]) == 0, capsys.readouterr().out
    found = json.loads(file.read_text())
    assert found["requests"] >= 120
    statuses = {name.split()[-1] for name in found["answers"]}
    assert {"200", "400", "404", "left"} >= statuses
    assert len(found["samples"]) == 7
    assert set(found["slopes"]) >= {"rss_mb", "threads", "files"}
    assert (found["answers"].get("tiny 200", 0) > 90) == tiny


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


def test_slopes_are_for_100000_requests() -> None:
    """A line has no error; one that goes up and down has one."""
    samples = [{**REST, "requests": 1000 * i, "rss_mb": 300 + 0.02 * i, "files": 7 + i % 2} for i in range(11)]
    busy = {**REST, "requests": 500, "rss_mb": 900.0, "busy": True}
    found = serving_soak.slopes([samples[0], busy, *samples[1:]])
    assert found["rss_mb"] == [2.0, 0.0]
    assert found["threads"] == [0.0, 0.0]
    slope, error = found["files"]
    assert abs(slope) < error
    assert serving_soak.slopes(samples[:2]) == {}


def test_slopes_of_the_second_half_leave_out_what_fills_before() -> None:
    samples = [{**REST, "requests": 1000 * i, "rss_mb": 300.0 + min(i, 5)} for i in range(11)]
    assert serving_soak.slopes(samples)["rss_mb"][0] > 10
    assert serving_soak.slopes(samples, 0.5)["rss_mb"] == [0.0, 0.0]


def test_requests_without_an_answer_are_problems() -> None:
    answers = {"whole 200": 9, "left left": 2, "wrong 400": 3, "whole TimeoutError": 1}
    assert serving_soak.failed(answers) == ["whole TimeoutError: 1"]
