"""Models of several formats on the command line: what is measured for them, what is shown of them, and plans."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_files
import pytest
import tiny
from refusals import refused
from terminal import folded

from headrace import LLM, OptionError
from headrace.engine.bandwidth_model import profile as profiles
from headrace.engine.bandwidth_model.profile import FormatRates, Profile
from headrace.engine.bench import calibrate
from headrace.engine.measure import kernel_rates, other_load
from headrace.engine.measure.kernel_rates import USUAL
from headrace.engine.terminal import generate_report
from headrace.kernels.context import Context
from headrace.loaders.files import gguf_set

Run = Callable[..., tuple[int, str, str]]
MIX = ["--expert-format", "q4_k_m", "--dense-format", "q4_k_m"]
ASK = ["In the beginning", "-n", 3, "--ignore-eos"]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else computes, unless a test says so."""
    monkeypatch.setattr(other_load, "look", lambda: 0.0)


@pytest.fixture
def usual(profile: Profile) -> Profile:
    """The saved profile, of the usual formats alone."""
    known = profiles.load_profile(Context())
    assert known is not None
    rates = dict.fromkeys(USUAL, 1e10)
    made = dataclasses.replace(known, linear=rates, experts=rates, batch={"4": rates}, crowd={"2": rates})
    profiles.save_profile(made)
    return made


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Formats are measured at once; the list has those that were asked for each time."""
    asked: list[list[str]] = []

    def measure(context: Context, formats: list[str], *_: Any) -> FormatRates:
        asked.append(formats)
        rates = dict.fromkeys(formats, 5e9)
        return FormatRates(linear=rates, experts=rates, batch={"4": rates}, crowd={"2": rates})

    monkeypatch.setattr(kernel_rates, "measure_formats", measure)
    monkeypatch.setattr(calibrate, "measure", lambda *_, **__: pytest.fail("all was measured"))
    return asked


def saved() -> Profile:
    found = profiles.load_profile(Context())
    assert found is not None
    return found


def test_a_model_adds_its_formats_to_what_is_known(run: Run, usual: Profile, measured: list[list[str]]) -> None:
    """Once; what was known stays."""
    status, _, err = run("generate", "demo", *ASK, *MIX)
    assert status == 0, err
    assert "q4_k, q6_k, q5_0 were not measured on this machine yet; reading its memory" in folded(err).replace(
        "q4_k, q5_0, q6_k", "q4_k, q6_k, q5_0"
    )
    assert [set(formats) for formats in measured] == [{"q4_k", "q5_0", "q6_k"}]
    found = saved()
    assert set(found.experts) == set(found.linear) == {*USUAL, "q4_k", "q5_0", "q6_k"}
    assert (found.experts["q4_k"], found.experts["q4_0"], found.date) == (5e9, 1e10, usual.date)
    run("generate", "demo", *ASK, *MIX)
    run("generate", "demo", *ASK)
    assert len(measured) == 1


def test_what_is_not_measured_is_estimated_and_said(
    run: Run, usual: Profile, measured: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_load, "look", lambda: 9.0)
    status, _, err = run("generate", "demo", *ASK, *MIX)
    assert status == 0
    said = folded(err)
    assert "and are not measured now: other processes take 9.0 cores" in said
    assert "Predictions take the rates of formats that are alike" in said
    assert measured == []
    assert set(saved().experts) == set(USUAL)
    with LLM("demo", max_context=32, expert_format="q4_k_m", dense_format="q4_k_m") as llm:
        told = llm.predictions.estimates
    for each in ("q4_k (from q4_0)", "q5_0 (from q4_0)", "q6_k (from q4_0)", "headrace measure --formats"):
        assert each in told


def test_formats_can_be_asked_for(profile: Profile, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    asked: list[Any] = []

    def measure(context: Context, rounds: int, quick: bool, more: list[str]) -> Profile:
        asked.append(more)
        return profile

    monkeypatch.setattr(calibrate, "measure", measure)
    assert run("measure", "--formats", "Q4_K, q6_k")[0] == 0
    assert run("measure", "--formats", "all")[0] == 0
    assert asked[0] == ["q4_k", "q6_k"]
    assert {"iq2_s", "mxfp4", "q2_k"} <= set(asked[1])
    with refused(OptionError, "--formats has no 'q4_k_m'; there are all, f32"):
        calibrate.named("q4_k_m")


def test_the_start_up_table_says_formats_and_rates(usual: Profile) -> None:
    """Experts: q4_0's 10 GB/s for q4_k and q5_0, and for q8_0 what it has."""
    rates = {"experts": {**usual.experts, "q8_0": 5e9, "q6_k": 1e9}, "linear": {**usual.linear, "q6_k": 2e9}}
    slow = dataclasses.replace(usual, **rates)
    with LLM("demo", max_context=32, expert_format="q4_k_m", dense_format="q4_k_m") as llm:
        llm.predictions.use_profile(slow)
        rows = {row.what: row for row in generate_report.placement_rows(llm)}
        title = str(generate_report.startup_table(llm).title)
        experts = rows["7 x 16 experts"]
        assert experts.format == "q4_k/q8_0 +1"
        layers = [llm.parts.checkpoint.formats.layout(llm.spec, i).bytes_by_format for i in range(len(llm.spec.layers))]
        total = sum(sum(one.values()) for one in layers)
        q8 = sum(one.get("q8_0", 0) for one in layers)
        assert experts.rate == f"~{total / ((total - q8) / 1e10 + q8 / 5e9) / 1e9:.1f}"
        head = rows["head = embedding"]
        assert (head.format, head.rate) == ("q6_k", "2.0")
        assert rows["rest of the layers"].format == "q4_k/q6_k"
        assert f"predicted, GB/s: 7 x 16 experts {experts.rate}" in title
    with LLM("demo", max_context=32, kernels="reference") as llm:
        assert "predicted" not in str(generate_report.startup_table(llm).title)


def types(name: str) -> str:
    """Six bits for down, values and head; norms and routers stay as they are."""
    if "norm" in name or "ffn_gate_inp" in name:
        return "F32"
    return "Q6_K" if any(role in name for role in ("ffn_down", "attn_v")) or name.startswith("output") else "Q4_K"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("mixed")
    sizes = {"hidden_size": 256, "head_dim": 64, "moe_intermediate_size": 512, "intermediate_size": 256}
    tiny.build("qwen3_moe", base / "shapes", **sizes)
    gguf_files.mixed(base / "shapes", base / "mix.gguf", base / "twin", types)
    return base / "mix.gguf"


def test_bench_runs_a_gguf_file_and_says_what_it_is_in(run: Run, profile: Profile, mixed: Path, tmp_path: Path) -> None:
    status, out, err = run("bench", mixed, "-p", 8, "-n", 4, "-r", 1, "--json", tmp_path / "a.json")
    assert status == 0, err
    assert "random" not in err
    assert "experts q4_k/q6_k, dense q4_k/q6_k, embedding q4_k" in folded(out)
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["formats"] == {"experts": "q4_k/q6_k", "dense": "q4_k/q6_k", "embed": "q4_k"}
    assert all(row["predicted_tok_s"] > 0 for row in found["rows"])


def test_doctor_says_what_a_model_is_in(run: Run, profile: Profile, mixed: Path) -> None:
    status, out, err = run("doctor", mixed)
    assert status == 0, err
    assert "weights: experts q4_k/q6_k, dense q4_k/q6_k, embedding q4_k" in folded(out)


def test_a_plan_has_the_files_bytes_and_those_in_memory(run: Run, usual: Profile, mixed: Path) -> None:
    profiles.save_profile(dataclasses.replace(usual, memory_bytes=10**10))
    status, out, _ = run("plan", mixed, "--context", 64, "--prompt", 8, "--json")
    assert status == 0
    found = json.loads(out)
    stored = sum(tensor.nbytes for tensor in gguf_set.of_path(mixed).tensors)
    assert found["storage"]["total"] == stored
    ram = found["memory"]["ram"]
    with LLM(mixed, max_context=64) as llm:
        assert found["in_memory"] == llm.parts.weights.nbytes
        assert ram["common weights"] + ram["experts"] + ram["embedding"] == llm.parts.weights.nbytes
    assert found["memory"]["disk"]["needed"] == stored
    assert any("q4_k (from q4_0)" in note for note in found["notes"])
