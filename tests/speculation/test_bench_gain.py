"""`headrace bench` shows what drafts gain: predicted for any model, measured where they are asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from terminal import folded

from headrace import LLM
from headrace.engine.bandwidth_model import reconcile
from headrace.engine.bandwidth_model.profile import Profile
from headrace.engine.bench import bench, decoding
from headrace.engine.bench.grid import Grid
from headrace.engine.generation.request import Request
from headrace.engine.planning.speed import gains

Run = Callable[..., tuple[int, str, str]]
NEW = 40
TESTS = Grid(prompt=(0,), new=(NEW,), batch=(1, 2), depth=(0, 48), rounds=2)


@pytest.fixture
def llm(profile: Profile) -> LLM:
    llm = LLM("demo", speculate="lookup", **bench.room(TESTS))
    llm.predictions.use_profile(profile)
    return llm


def test_gains_are_those_of_the_times_of_passes() -> None:
    """Where a token more costs nothing all are drafted, where it costs a pass none is."""
    free, dear = gains([1.0] * 9), gains([1.0 + n for n in range(9)])
    assert [one.length for one in free] == [8, 8, 8]
    assert free[1].gain == pytest.approx(sum(0.6**n for n in range(9)))
    assert [(one.length, one.gain) for one in dear] == [(0, 1.0)] * 3


def test_what_is_predicted_is_of_the_machine(llm: LLM, profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    assert decoding.predicted_gains(llm, 1, 64) == ()  # the caches hold it: nothing is known of such passes
    monkeypatch.setattr(reconcile, "IN_CACHES", 0)
    found = decoding.predicted_gains(llm, 1, 64)
    assert [one.accepted for one in found] == [0.3, 0.6, 0.9]
    assert 1 <= found[0].gain <= found[1].gain < found[2].gain < sum(0.9**n for n in range(9))
    many = decoding.predicted_gains(llm, 8, 64)
    assert many[2].gain > found[2].gain  # they read most experts in any case, and arithmetic is free in this profile
    llm.predictions.use_profile(None)
    assert decoding.predicted_gains(llm, 1, 64) == ()


def test_both_sides_write_the_same_new_text(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[bytes, list[int], bool]] = []
    run = llm.loop.run

    def recorded(requests: list[Request]) -> None:
        drafts = llm.loop.drafts is not None
        run(requests)
        written.extend((one.sequence.salt, one.sequence.tokens, drafts) for one in requests)

    monkeypatch.setattr(llm.loop, "run", recorded)
    found = decoding.in_turns(llm, NEW, 1, 48, 2)
    assert found is not None
    assert len({salt for salt, _, _ in written}) == len(written) == 6
    pairs = [written[i : i + 2] for i in (0, 2, 4)]
    assert [one[2] for one in written] == [False, True, True, False, False, True]
    assert all(one[1] == other[1] for one, other in pairs)
    assert len({tuple(tokens) for _, tokens, _ in written}) == 3
    assert len(found.rounds) == len(found.rounds_without) == 2
    assert llm.loop.drafts is not None
    assert found.drafted >= found.accepted


def test_rows_are_without_drafts(llm: LLM) -> None:
    """Greedy text is the same in every round: a look-up would know it."""
    with llm.ledger.recording() as passes:
        with decoding.without_drafts(llm):
            once = decoding.once(llm, NEW, 1, 48)
            rounds = [once(turn) for turn in range(3)]
        assert not any(one.drafted for one in passes)
    assert [len(steps) for steps in rounds] == [NEW] * 3
    once(3)
    assert sum(one.accepted for one in once(4)) > NEW / 2  # with drafts the text of the last round would be known


def test_nothing_is_in_turns_without_a_drafter(profile: Profile) -> None:
    llm = LLM("demo", speculate="off", **bench.room(TESTS))
    assert decoding.in_turns(llm, NEW, 1, 0, 1) is None


def test_the_table_and_the_result(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "IN_CACHES", 0)
    asked = ("bench", "demo", "-p", 8, "-n", NEW, "-b", "1,2", "-r", 2)
    status, out, err = run(*asked, "--speculate", "lookup", "--json", tmp_path / "a.json")
    assert status == 0, err
    assert "predicted gain of drafts" in folded(out)
    assert "the same new text without drafts and with them" in folded(out)
    found: dict[str, Any] = json.loads((tmp_path / "a.json").read_text())
    assert found["speculate"] == "lookup"
    prompt, *decode = found["rows"]
    assert (prompt["drafts"], prompt["gains"]) == (None, [])
    for row in decode:
        one = row["drafts"]
        assert [len(one["rounds"]), len(one["rounds_without"])] == [2, 2]
        assert min(one["rounds"]) <= one["tok_s"] <= max(one["rounds"])
        assert min(one["rounds_without"]) <= one["tok_s_without"] <= max(one["rounds_without"])
        assert one["gain"] > 0
        assert one["bytes_per_token_without"]["cpu_dram"]["total"] > 0
        assert [g["accepted"] for g in row["gains"]] == [0.3, 0.6, 0.9]
    status, out, _ = run(*asked, "--json", tmp_path / "b.json", "--compare", tmp_path / "a.json")
    assert status in (0, 1)
    assert "with them" not in folded(out)
    assert all(row["drafts"] is None for row in json.loads((tmp_path / "b.json").read_text())["rows"])
