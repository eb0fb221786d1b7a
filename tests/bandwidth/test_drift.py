"""Live reconciliation: one line when measured and predicted time of decode drift apart, and none otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace import LLM, SamplingParams
from headrace.engine.bandwidth_model import reconcile as engine
from headrace.engine.bandwidth_model.profile import Profile
from headrace.engine.ledger.drift import DriftWatch
from headrace.engine.ledger.passes import Pass, in_turn


def step(measured: float, predicted: dict[str, float] | None, tokens: int = 1, phase: str = "decode") -> Pass:
    read = {"cpu_dram": {"experts": 8_000_000}, "gpu_hbm": {"dense": 1_000_000}}
    return Pass(
        index=0, phase=phase, sequences=[0], tokens=tokens, context=1, bytes=read, measured_s=measured,
        expect=None if predicted is None else lambda _: in_turn(predicted),
    )  # fmt: skip


def lines(passes: list[Pass]) -> list[str]:
    found: list[str] = []
    watch = DriftWatch(found.append)
    for one in passes:
        watch(one)
    return found


PREDICTED = {"cpu_dram": 0.8e-3, "gpu_hbm": 0.1e-3, "fixed": 0.1e-3}  # 1 ms


def test_the_slow_tier_is_named_once() -> None:
    """8 MB in 0.8 ms is 10 GB/s; of 2.2 ms the others keep 0.2."""
    (line,) = lines([step(2.2e-3, PREDICTED)] * 200)
    assert "2.20 ms a token, predicted 1.00" in line
    assert "cpu_dram gives 4.0 of 10.0 GB/s" in line


def test_fixed_costs_are_no_tier() -> None:
    (line,) = lines([step(3e-3, {"cpu_dram": 0.1e-3, "fixed": 0.9e-3})] * 32)
    assert "no tier" in line


def test_faster_than_predicted_is_an_old_profile() -> None:
    (line,) = lines([step(0.5e-3, PREDICTED)] * 32)
    assert "headrace measure" in line


@pytest.mark.parametrize("measured", [0.85e-3, 1.0e-3, 1.15e-3])
def test_within_a_fifth_nothing_is_said(measured: float) -> None:
    assert lines([step(measured, PREDICTED)] * 100) == []


def test_it_takes_32_tokens() -> None:
    slow = step(3e-3, PREDICTED)
    assert lines([slow] * 31) == []
    assert len(lines([step(3e-3, PREDICTED, tokens=4)] * 8)) == 1
    assert lines([step(3e-3, PREDICTED, phase="prefill")] * 64) == []
    assert lines([step(3e-3, None)] * 64) == []


def test_a_slow_moment_is_averaged() -> None:
    assert lines([step(3e-3, PREDICTED)] + [step(1e-3, PREDICTED)] * 40) == []


def run(llm: LLM, found: list[str]) -> list[str]:
    llm.predictions.tell = found.append
    llm.generate([[5, 6]], SamplingParams(max_new_tokens=40, ignore_eos=True))
    return found


def test_every_generate_is_watched(
    checkpoints: Callable[[str], Path], profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A profile of a machine a thousand times as fast: a line a run, none without a profile or for a tiny model."""
    rates = dict.fromkeys(profile.linear, 1e15)
    fast = dataclasses.replace(profile, linear=rates, experts=rates)
    llm = LLM(str(checkpoints("mixtral")))
    llm.predictions.use_profile(fast)
    assert run(llm, []) == []  # the caches hold it
    monkeypatch.setattr(engine, "IN_CACHES", 1)
    assert len(run(llm, [])) == 1
    assert len(run(llm, [])) == 1
    llm.predictions.use_profile(None)
    assert run(llm, []) == []
