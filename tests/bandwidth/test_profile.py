"""Profiles that stay true: those of other kernels are noticed, those of a busy machine are not kept."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import quick
from rich.console import Console
from terminal import folded

from headrace import LLM, OptionError, SamplingParams
from headrace.engine.bandwidth_model import machine_file
from headrace.engine.bandwidth_model import profile as profiles
from headrace.engine.bandwidth_model.profile import STALE, Profile, load_profile, profile_path, save_profile
from headrace.engine.bench import calibrate, overhead
from headrace.engine.measure import other_load
from headrace.engine.terminal import generate_command
from headrace.engine.terminal.doctor import doctor_command
from headrace.engine.terminal.doctor.profile_table import profile_table
from headrace.kernels import isa
from headrace.kernels.context import Context

Run = Callable[..., tuple[int, str, str]]
ASK = ["Hello", "-n", 3, "--ignore-eos"]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else computes, unless a test says so."""
    monkeypatch.setattr(other_load, "LOOK_S", 0.0)
    monkeypatch.setattr(other_load.Strangers, "cores", lambda self: 0.0)


@pytest.fixture
def stale(profile: Profile) -> Profile:
    """The saved profile, of other kernels."""
    known = load_profile(Context())
    assert known is not None
    assert not known.is_stale
    save_profile(old := dataclasses.replace(known, kernels="other", date="1999-01-01"))
    return old


@pytest.fixture
def measured(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Measuring gives a profile of today at once; the list has how many cores others take meanwhile."""
    busy = [0.0]
    found = load_profile(Context())
    assert found is not None
    made = dataclasses.replace(found, date="2026-01-01", kernels=isa.kernels_digest())
    monkeypatch.setattr(calibrate, "measure", lambda *_, **__: dataclasses.replace(made, busy=busy[0]))
    return busy


def saved_date() -> str | None:
    known = load_profile(Context())
    return None if known is None else known.date


def forget() -> None:
    profile_path(profiles.hardware_key(Context())).unlink()


def test_what_was_saved_before_still_loads(profile: Profile) -> None:
    """Without what newer versions keep; of kernels that nobody knows."""
    path = profile_path(profiles.hardware_key(Context()))
    values = json.loads(path.read_text())
    for name in ("together", "kernels"):
        del values[name]
    path.write_text(json.dumps(values))
    found = load_profile(Context())
    assert found is not None
    assert found.together == {}
    assert found.is_stale


def test_a_profile_of_other_kernels_is_measured_again(
    run: Run, talker: Path, stale: Profile, measured: list[float]
) -> None:
    _, _, err = run("generate", talker, *ASK)
    assert STALE in err
    assert "saved in" in err
    assert saved_date() == "2026-01-01"
    _, _, err = run("generate", talker, *ASK)
    assert STALE not in err


def test_where_nobody_measures_there_is_a_warning(
    talker: Path, stale: Profile, caplog: pytest.LogCaptureFixture
) -> None:
    """From Python: once, with the remedy; the profile is used as it is."""
    llm = LLM(str(talker))
    assert llm.predictions.profile == stale
    for _ in range(2):
        llm.generate([[5, 6]], SamplingParams(max_new_tokens=2, ignore_eos=True))
    (line,) = [record.getMessage() for record in caplog.records if STALE in record.getMessage()]
    assert "run headrace measure" in line


def test_a_current_profile_is_no_matter(talker: Path, profile: Profile, caplog: pytest.LogCaptureFixture) -> None:
    LLM(str(talker)).generate([[5, 6]], SamplingParams(max_new_tokens=2, ignore_eos=True))
    assert not caplog.records


def test_a_plan_says_that_its_rates_are_of_other_kernels(run: Run, talker: Path, stale: Profile) -> None:
    save_profile(stale := dataclasses.replace(stale, memory_bytes=10**10))
    status, out, _ = run("plan", talker, "--json")
    assert status == 0
    assert any(STALE in note and "headrace measure" in note for note in json.loads(out)["notes"])
    assert STALE in folded(run("plan", talker)[1])
    save_profile(dataclasses.replace(stale, kernels=isa.kernels_digest()))
    assert STALE not in folded(run("plan", talker)[1])
    cpu = machine_file.of_profile(stale).cpu
    assert cpu is not None
    assert STALE in cpu.doubt


@pytest.mark.parametrize("kept", [True, False])
def test_nothing_is_measured_while_others_compute(
    kept: bool, run: Run, talker: Path, stale: Profile, measured: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for the first time nor again, and the run says so once."""
    monkeypatch.setattr(other_load.Strangers, "cores", lambda self: 99.0)
    monkeypatch.setattr(calibrate, "measure", lambda *_, **__: pytest.fail("it was measured"))
    if not kept:
        forget()
    _, _, err = run("generate", talker, *ASK)
    assert "other processes take 99.0 cores" in err
    assert "run `headrace measure`" in err
    assert err.count(STALE) == int(kept)
    assert ("no prediction" in err) == (not kept)
    assert saved_date() == ("1999-01-01" if kept else None)


@pytest.mark.parametrize("kept", [True, False])
def test_what_a_busy_machine_gave_is_not_kept(
    kept: bool, run: Run, talker: Path, stale: Profile, measured: list[float]
) -> None:
    """It is held against this run and forgotten; what was there stays."""
    measured[0] = 99.0
    if not kept:
        forget()
    _, _, err = run("generate", talker, *ASK)
    assert "not saved: other processes took 99.0 cores" in err
    assert "saved in" not in err
    assert saved_date() == ("1999-01-01" if kept else None)


def test_asked_for_it_is_kept_with_a_warning(run: Run, measured: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    quick.calibrations(monkeypatch)
    measured[0] = 99.0
    status, _, err = run("measure")
    assert status == 0
    assert "other processes took 99.0 cores" in err
    assert "measure again" in err
    assert saved_date() == "2026-01-01"
    measured[0] = 0.0
    assert "measure again" not in run("measure")[2]


def test_a_doctor_measures_whoever_is_there(
    stale: Profile, measured: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_load.Strangers, "cores", lambda self: 99.0)
    measured[0] = 99.0
    assert doctor_command._profile(None).date == "2026-01-01"
    assert saved_date() == "1999-01-01", "not kept"


def test_a_machine_that_cannot_be_measured_keeps_what_it_has(
    talker: Path, stale: Profile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> Profile:
        raise OptionError("no memory")

    monkeypatch.setattr(calibrate, "measure", refuse)
    llm = LLM(str(talker))
    generate_command.ensure_profile(llm)
    assert llm.predictions.profile == stale
    assert "could not be measured: no memory" in folded(capsys.readouterr().err)


def test_who_is_in_the_way_depends_on_how_many_cores_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, few, many in ((2, 0.2, 0.3), (64, 3.0, 3.5)):
        monkeypatch.setattr(other_load.psutil, "cpu_count", lambda cores=cores: cores)
        assert not other_load.are_in_the_way(few)
        assert other_load.are_in_the_way(many)


def test_a_run_says_once_that_a_profile_is_stale(
    run: Run, talker: Path, stale: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it loads its model."""
    monkeypatch.setattr(other_load, "look", lambda: 99.0)
    asked = ["-p", 4, "-n", 2, "-r", 1, "--placement", "cpu,disk"]
    status, _, err = run("bench", talker, *asked)
    assert status == 0
    assert folded(err).count(STALE) == 1


def test_models_that_are_measured_predict_nothing(stale: Profile) -> None:
    """What they would say of a prediction is for a user's run, not for whoever measures."""
    shape = overhead.shapes(2, 1, 32)["few"]
    llm = overhead._model(Context(threads=1), {**shape, "hidden_size": 64, "vocab_size": 256})
    said: list[str] = []
    llm.predictions.tell = said.append
    llm.generate([[1, 2, 3]], SamplingParams(max_new_tokens=40, ignore_eos=True))
    assert said == []
    assert llm.parts.config.speculate == "off"
    assert llm.predictions.ledger.predict is None
    assert llm.predictions.ledger.watch is None


def test_names_of_the_table_take_one_line(stale: Profile) -> None:
    """In 80 columns, also the longest."""
    screen = Console(file=io.StringIO(), width=80)
    screen.print(profile_table(dataclasses.replace(stale, attention={"8": 30e9, "512": 20e9})))
    text = screen.file.getvalue()
    assert all(len(line) <= 80 for line in text.splitlines())
    assert any("attention, 512 queries a key" in line and "20.00" in line for line in text.splitlines())
