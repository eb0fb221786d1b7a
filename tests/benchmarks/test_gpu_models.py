"""Whole models as `benchmarks/gpu_models.py` runs them, with RAM in the GPU's part: setups, tests, what fails."""

from __future__ import annotations

import json
from typing import Any

import gpu_models
import pytest
from busy import HANG_S

FEW = gpu_models.Tests(prompts=(5, 9), batches=(1, 2), new=3, depth=4, rounds=1)


def test_every_setup_of_the_models_runs(built: Any) -> None:
    """The same code with RAM in the GPU's part and a tiny shape: a report of the load and of every test, its bytes."""
    model = str(built.directory("qwen3_moe") / "config.json")
    placements = []
    for setup in [one for part in gpu_models.setups("eager", small_card=0.002).values() for one in part]:
        reports: list[dict[str, Any]] = []
        gpu_models.run(setup, FEW, "simulated", model, None, reports.append)
        loaded, *rows = json.loads(json.dumps(reports))
        placements.append(loaded["placement"])
        assert loaded["layers"] == loaded["whole_layers"]
        assert loaded["handoff"]["name"] == "eager"
        assert [(row["test"], row["batch"]) for row in rows] == [("pp5", 1), ("pp9", 1), ("tg3", 1), ("tg3", 2)]
        assert all(row["ms"] > 0 and row["peak_ram_gb"] > 0 and row["graph_steps"] == 0 for row in rows)
        assert all(row["tiers"]["time_ms"]["gpu_hbm"] > 0 for row in rows)
        assert all(row["residual_ms"] is None and row["tiers"]["cause"] is None for row in rows), "no rates"
        told = gpu_models.lines(setup.name, {"rows": rows})
        assert sum("ms with the clock on: " in line for line in told) == len(rows)
        in_ram = [row["bytes_per_token"].get("cpu_dram", {}).get("experts", 0) for row in rows]
        assert all(in_ram) if loaded["pinned"] else not any(in_ram)
    assert placements[:3] == ["cpu-moe", "gpu", "cpu-moe"]
    assert placements[6].startswith("n-cpu-moe=")


def test_graphs_come_first_and_setups_have_names() -> None:
    every = gpu_models.setups()
    assert [setup.name for setup in every["models"]] == [
        "cpu-moe q4_0, memop",
        "gpu q4_0, memop",
        "cpu-moe q4_0, eager",
    ]
    names = [setup.name for part in every.values() for setup in part]
    assert len(set(names)) == len(names) == 9
    assert [setup.handoff for setup in gpu_models.named(every["models"], "cpu-moe")] == ["memop", "eager"]
    with pytest.raises(ValueError, match="no setup is called 'disk': take a part of cpu-moe q4_0, memop;"):
        gpu_models.named(every["models"], "disk")
    tests = gpu_models.Tests()
    assert (tests.named("pp4").prompts, tests.named("pp4").batches) == ((4096,), ())
    assert (tests.named("batch 4").prompts, tests.named("batch 4").batches) == ((), (4,))
    with pytest.raises(ValueError, match="no test is called 'tg5': take a part of pp512, pp4096, tg24 batch 1"):
        tests.named("tg5")


def test_only_what_was_chosen_is_run(built: Any) -> None:
    model = str(built.directory("qwen3_moe") / "config.json")
    setup = gpu_models.Setup(placement="gpu", format="q4_0")
    for name, wanted in (("pp5", ["pp5"]), ("batch 2", ["tg3"])):
        reports: list[dict[str, Any]] = []
        gpu_models.run(setup, FEW.named(name), "simulated", model, 1, reports.append)
        assert [row["test"] for row in reports[1:]] == wanted


def test_decode_by_graphs_without_a_graph_is_a_failure() -> None:
    rows = [{"test": "pp512", "batch": 1, "graph_steps": 0}, {"test": "tg24", "batch": 4, "graph_steps": 0}]
    found = {"setups": {"a": {"graphs": True, "rows": rows}, "b": {"graphs": False, "rows": rows}}}
    assert gpu_models.failures(found) == ["a: no graph ran in tg24 with a batch of 4"]
    rows[1]["graph_steps"] = 23
    assert gpu_models.failures(found) == []


def test_a_setup_that_fails_costs_no_other(built: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """In processes of their own: one ends well, one has no such hand-off, for one there is no time."""
    model = str(built.directory("qwen3_moe") / "config.json")
    works, fails = (gpu_models.Setup(placement="cpu-moe", format="bf16", handoff=name) for name in ("eager", "memop"))
    kept: list[int] = []
    found = gpu_models.measure(
        "simulated", model=model, layers=1, tests=FEW, chosen=[works, fails], seconds=HANG_S,
        keep=lambda found: kept.append(sum(len(one["rows"]) for one in found["setups"].values())),
    )  # fmt: skip
    assert len(found["setups"][works.name]["rows"]) == 4
    assert set(kept) == {0, 1, 2, 3, 4}, "a report after every row"
    assert "take handoff 'eager'" in found["setups"][fails.name]["problem"]
    assert "OptionError" in found["setups"][fails.name]["stderr"][-1]
    assert gpu_models.failures(found) == [f"{fails.name}: {found['setups'][fails.name]['problem']}"]
    late = gpu_models.measure("simulated", model=model, chosen=[works], seconds=0)
    assert "not run" in late["setups"][works.name]["problem"]
    out = capsys.readouterr().out
    assert "tg3" in out
    assert "FAILED" in out
