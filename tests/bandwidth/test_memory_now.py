"""Memory that gives less now than when the machine was measured: predictions go by it, and a line says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from terminal import folded

from headrace import LLM, SamplingParams
from headrace.engine.bandwidth_model import profile as profiles
from headrace.engine.bandwidth_model import reconcile
from headrace.engine.bandwidth_model.profile import Profile
from headrace.engine.ledger.passes import CPU_DRAM
from headrace.engine.measure import kernel_rates, memory_now
from headrace.engine.terminal import generate_report
from headrace.kernels.context import Context

Run = Callable[..., tuple[int, str, str]]
HOW = SamplingParams(max_new_tokens=4, ignore_eos=True)


def test_the_way_from_memory_changes_and_the_rest_does_not(profile: Profile) -> None:
    """By hand: a byte's time is that of a plain read and what is left of the kernel's."""
    rates = {"bf16": 1e10, "q8_0": 5e9, "q4_0": 1e9, "f32": 2e10}
    found = replace(profile, stream=1e10, linear=rates, batch={"16": rates}).with_memory_at(5e9)
    expected = {
        "bf16": 5e9,  # a plain read
        "q8_0": 1 / (1 / 5e9 + 1 / 1e10),  # half of it arithmetic
        "q4_0": 1 / (1 / 1e9 + 1 / 1e10),
        "f32": 1e10,  # faster than a plain read: all of it is
    }
    assert found.linear == pytest.approx(expected)
    assert found.batch["16"] == pytest.approx(expected)
    assert found.stream == 5e9
    assert found.experts == pytest.approx(dict.fromkeys(profile.experts, 5e9))
    assert found.attention == pytest.approx(dict.fromkeys(profile.attention, 5e9))
    assert found.pass_s == profile.pass_s
    back = found.with_memory_at(1e10)
    assert back.linear == pytest.approx(rates)
    assert profile.with_memory_at(profile.stream).linear == pytest.approx(profile.linear)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What memory gives: the last number; and how often it was asked, which is their count less one."""
    gives = [1e10]

    def plain_read(*_: object) -> float:
        gives.append(gives[-1])
        return gives[-1]

    monkeypatch.setattr(memory_now, "plain_read", plain_read)
    monkeypatch.setattr(reconcile, "IN_CACHES", 0)
    return gives


def seconds_of(llm: LLM) -> float:
    """Of reading, in the last pass."""
    llm.generate([[5, 6, 7, 8]], HOW)
    predicted = llm.ledger.last.predicted
    assert predicted is not None
    return predicted.terms[CPU_DRAM]


@pytest.mark.parametrize(("gives", "is_said"), [(1.08e10, False), (9.3e9, False), (5e9, True), (2e10, True)])
def test_predictions_go_by_what_memory_gives(
    gives: float, is_said: bool, memory: list[float], profile: Profile
) -> None:
    with LLM("demo") as llm:
        usual = seconds_of(llm)
        assert llm.predictions.memory_now is None
    memory[:] = [gives]
    with LLM("demo") as llm:
        factor = gives / profile.stream if is_said else 1.0
        assert seconds_of(llm) == pytest.approx(usual / factor)
        assert llm.predictions.profile == profile  # of which formats may be saved that were measured since
        assert llm.predictions.plain_read == pytest.approx(factor * profile.stream)
        said = f"memory gives a plain read {gives / 1e9:.0f} GB/s now, 10 when it was measured: predictions go by that"
        table = str(generate_report.startup_table(llm).title)
        assert (said in folded(table)) == is_said
        asked = len(memory)
        llm.predictions.use_profile(llm.predictions.profile)
        assert len(memory) == asked, "read again without need"
        llm.predictions.as_profiled()
        assert seconds_of(llm) == pytest.approx(usual)
        assert not llm.predictions.memory_said


def test_a_profile_that_comes_later_is_held_against_memory_then(memory: list[float], profile: Profile) -> None:
    with LLM("demo") as llm:
        memory.append(4e9)
        llm.predictions.use_profile(replace(profile, date="2001-01-01"))
        assert llm.predictions.memory_now == 4e9
        llm.predictions.use_profile(None)
        assert llm.predictions.memory_now is llm.predictions.plain_read is None


def test_nothing_is_read_where_nothing_is_predicted(memory: list[float], profile: Profile, cache_home: Path) -> None:
    for options in ({"no_measure": True}, {"kernels": "reference"}):
        LLM("demo", **options).close()  # type: ignore[arg-type]
    profiles.profile_path(profiles.hardware_key(Context())).unlink()
    LLM("demo").close()
    assert memory == [1e10]


def test_a_run_and_a_bench_say_so(memory: list[float], run: Run, tmp_path: Path) -> None:
    memory[:] = [5e9]
    said = "memory gives a plain read 5 GB/s now, 10 when it was measured"
    assert said in folded(run("generate", "demo", "Water", "-n", 2)[2])
    status, out, err = run("bench", "demo", "-p", 0, "-n", 4, "-r", 1, "--json", tmp_path / "a.json")
    assert status == 0, err
    assert said in folded(out + err)
    assert '"stream_now": 5000000000.0' in (tmp_path / "a.json").read_text()


def test_pieces_far_apart_are_read_and_the_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_now, "PIECE", 1000)
    monkeypatch.setattr(memory_now, "SMALLEST", 800)
    read: list[int] = []
    took = iter([9.0, 1.0, 0.5, 2.0, 100.0, 1.0])  # the first is not counted

    def stream_read(_: Context, data: torch.Tensor) -> float:
        read.append(int(data[0]))
        return next(took)

    monkeypatch.setattr(memory_now.cpu_kernels(), "stream_read", stream_read)
    weights = [torch.full((4, 700), i, dtype=torch.uint8) for i in range(9)]
    others = [torch.zeros(10_000), torch.zeros(799, dtype=torch.uint8), torch.zeros(9000, dtype=torch.uint8)[::2]]
    assert memory_now.plain_read(Context(), [*weights, *others]) is None
    monkeypatch.setattr(memory_now, "LEAST", 9 * 2800)
    assert memory_now.plain_read(Context(), [*others, *weights]) == 1000.0
    assert read == [0, 1, 3, 4, 6, 7]
    monkeypatch.setattr(memory_now, "LEAST", 9 * 2800 + 1)
    assert memory_now.plain_read(Context(), [*others, *weights]) is None


def test_pieces_are_as_large_as_those_of_the_profile() -> None:
    """On a fast memory what starting threads takes would count for more in smaller ones."""
    assert memory_now.PIECE == kernel_rates.PIECE


def test_memory_of_this_machine_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_now, "LEAST", 1 << 28)
    found = memory_now.plain_read(Context(), [torch.zeros(1 << 26, dtype=torch.uint8)] * 6)
    assert found is not None
    assert found > 1e7
