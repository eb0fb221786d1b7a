"""What memory gives a plain read of a model's weights: what a bench holds its speed against."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from terminal import folded

from headrace.engine.bandwidth_model import profile as profiles
from headrace.engine.bandwidth_model.profile import Profile
from headrace.engine.measure import kernel_rates, plain_read
from headrace.kernels.context import Context

Run = Callable[..., tuple[int, str, str]]


def bench(run: Run, path: Path) -> tuple[str, list[dict[str, float]]]:
    """What a bench of the demo says, and its rows."""
    status, out, err = run("bench", "demo", "-p", 16, "-n", 4, "-r", 3, "--json", path)
    assert status == 0, err
    return folded(out + err), json.loads(path.read_text())["rows"]


def test_a_bench_holds_its_speed_against_reads_between_its_rounds(
    run: Run, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The median of those of a test counts. Predictions stay those of the profile, and a line says so."""
    gives = iter([3e9, 5e9, 1e9, 8e9, 4e9, 5e9])  # three of a prompt, three of steps
    monkeypatch.setattr(plain_read, "of_weights", lambda *_: next(gives))
    said, rows = bench(run, tmp_path / "a.json")
    assert [row["plain_read"] for row in rows] == [3e9, 5e9]
    for row in rows:
        read = row["bytes_per_token"]["cpu_dram"]["total"]  # type: ignore[index]
        assert row["share_of_ceiling"] == pytest.approx(read * row["tok_s"] / row["plain_read"])
    assert "memory gave a plain read 4 GB/s between the rounds, 10 when it was measured: predictions go by the" in said


def test_a_small_model_is_held_against_the_profile(run: Run, profile: Profile, tmp_path: Path) -> None:
    said, rows = bench(run, tmp_path / "a.json")
    assert {row["plain_read"] for row in rows} == {profile.stream}
    assert "memory gave" not in said


def test_nothing_is_read_where_nothing_is_predicted(
    run: Run, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles.profile_path(profiles.hardware_key(Context())).unlink()
    monkeypatch.setattr(plain_read, "of_weights", lambda *_: pytest.fail("read"))
    status, _, err = run("bench", "demo", "-p", 0, "-n", 4, "-r", 1, "--no-measure", "--json", tmp_path / "a.json")
    assert status == 0, err


def test_pieces_far_apart_are_read_and_the_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_read, "PIECE", 1000)
    monkeypatch.setattr(plain_read, "SMALLEST", 800)
    read: list[int] = []
    took = iter([9.0, 1.0, 0.5, 2.0, 100.0, 1.0])  # the first is not counted

    def stream_read(_: Context, data: torch.Tensor) -> float:
        read.append(int(data[0]))
        return next(took)

    monkeypatch.setattr(plain_read.cpu_kernels(), "stream_read", stream_read)
    weights = [torch.full((4, 700), i, dtype=torch.uint8) for i in range(9)]
    others = [torch.zeros(10_000), torch.zeros(799, dtype=torch.uint8), torch.zeros(9000, dtype=torch.uint8)[::2]]
    assert plain_read.of_weights(Context(), [*weights, *others]) is None
    monkeypatch.setattr(plain_read, "LEAST", 9 * 2800)
    assert plain_read.of_weights(Context(), [*others, *weights]) == 1000.0
    assert read == [0, 1, 3, 4, 6, 7]
    monkeypatch.setattr(plain_read, "LEAST", 9 * 2800 + 1)
    assert plain_read.of_weights(Context(), [*others, *weights]) is None


def test_pieces_are_as_large_as_those_of_the_profile() -> None:
    """On a fast memory what starting threads takes would count for more in smaller ones."""
    assert plain_read.PIECE == kernel_rates.PIECE


def test_memory_of_this_machine_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_read, "LEAST", 1 << 28)
    found = plain_read.of_weights(Context(), [torch.zeros(1 << 26, dtype=torch.uint8)] * 6)
    assert found is not None
    assert found > 1e7
