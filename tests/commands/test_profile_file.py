"""Where a machine's profile is kept, and starts that keep nothing and measure nothing."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import read_only
from refusals import refused
from terminal import folded

from headrace import LLM, OptionError
from headrace.engine import writable
from headrace.engine.bandwidth_model import profile as profiles
from headrace.engine.bandwidth_model.profile import Profile
from headrace.engine.bench import calibrate
from headrace.engine.cuda_graphs import saved_trials
from headrace.engine.measure import other_load, tile_thresholds
from headrace.kernels.context import Context

# (exit status, standard output, standard error) of a command
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else computes."""
    monkeypatch.setattr(other_load, "look", lambda: 0.0)


@pytest.fixture
def measured(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> list[Profile]:
    """Nothing is known of this machine; measuring it gives a profile at once. The list has those that were made."""
    known = profiles.load_profile(Context())
    assert known is not None
    for path in profiles.profile_path("x").parent.glob("machine-*.json"):
        path.unlink()
    made: list[Profile] = []

    def measure(*_: object, **__: object) -> Profile:
        made.append(known)
        return known

    monkeypatch.setattr(calibrate, "measure", measure)
    return made


def generate(run: Run, talker: Path, *options: object) -> str:
    """What a short run says."""
    status, out, err = run("generate", talker, "Hello", "-n", 2, "--ignore-eos", *options)
    assert status == 0, err
    assert out.strip()
    return folded(err)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_what_could_not_be_kept_is_not_measured_at_every_start(
    code: int, run: Run, talker: Path, measured: list[Profile], cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_only.lock(cache_home, monkeypatch, code)
    said = generate(run, talker)
    assert measured == []
    assert f"not saved: {os.strerror(code)}" in said
    for way in ("XDG_CACHE_HOME", "--profile", "--no-measure"):
        assert way in said


def test_no_measure(run: Run, talker: Path, measured: list[Profile], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile_thresholds, "refresh", lambda context: pytest.fail("thresholds were measured"))
    monkeypatch.setattr(tile_thresholds, "_saved", lambda *_: None)
    said = generate(run, talker, "--no-measure")
    assert measured == []
    assert "no prediction: this machine was not measured yet" in said
    generate(run, talker, "--no-measure", "--profile", "absent.json")
    assert not Path("absent.json").exists()


def test_a_known_profile_is_used_without_measuring(run: Run, talker: Path, profile: Profile) -> None:
    assert "not measured yet" not in generate(run, talker, "--no-measure")


def test_a_profile_in_a_file_of_its_own(
    run: Run, talker: Path, measured: list[Profile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kept" / "here.json"
    assert f"saved in {file}" in generate(run, talker, "--profile", file)
    assert len(measured) == 1
    assert profiles.load_profile(Context()) is None, "the usual place has none"
    read_only.lock(file.parent, monkeypatch)
    assert "saved" not in generate(run, talker, "--profile", file), "it is only read"
    assert len(measured) == 1
    assert LLM(talker, profile=str(file)).predictions.profile == measured[0]


def test_measure_writes_the_file_that_is_named(run: Run, measured: list[Profile], tmp_path: Path) -> None:
    status, _, err = run("measure", "--profile", tmp_path / "here.json")
    assert status == 0
    assert f"saved in {tmp_path / 'here.json'}" in folded(err)
    assert json.loads((tmp_path / "here.json").read_text())["key"] == measured[0].key
    measured.clear()
    status, _, err = run("measure", "--profile", tmp_path)
    assert status == 1
    assert "Is a directory" in err
    assert measured == [], "said before anything is measured"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": 1}', "\0"])
def test_a_file_that_is_no_profile_is_refused_and_stays(text: str, talker: Path, tmp_path: Path) -> None:
    (file := tmp_path / "notes.json").write_text(text)
    with refused(OptionError, "profile", str(file), "headrace measure --profile"):
        LLM(talker, profile=file)
    assert file.read_text() == text


def test_a_profile_of_another_machine_is_refused(talker: Path, profile: Profile, tmp_path: Path) -> None:
    other = dataclasses.replace(profile, key="other", cpu="Abacus", threads=99)
    profiles.save_profile(other, file := tmp_path / "other.json")
    with refused(OptionError, str(file), "Abacus", "99 threads", "headrace measure --profile"):
        LLM(talker, profile=file)


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    path = profiles.profile_path("key")
    assert path.is_absolute()
    assert str(os.getuid()) in str(path)


# ---- what is measured beside the profile


def test_thresholds_that_could_not_be_kept_are_those_of_the_table(
    cache_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Measured anew at every start they would round differently from run to run."""
    monkeypatch.setattr(tile_thresholds, "_built_in", lambda context: {"q8_0": 7})
    monkeypatch.setattr(tile_thresholds, "measure", lambda context, formats: dict.fromkeys(formats, 5))
    monkeypatch.setattr(tile_thresholds, "_saved", lambda *_: None)
    assert tile_thresholds.use(Context()).tiles_from == {"q8_0": 5}
    assert tile_thresholds.use(Context(), may_measure=False).tiles_from == {"q8_0": 7}
    assert caplog.messages == []
    read_only.lock(cache_home, monkeypatch)
    with caplog.at_level(logging.WARNING, "headrace"):
        assert tile_thresholds.use(Context()).tiles_from == {"q8_0": 7}
    assert "Read-only file system" in caplog.text
    assert "XDG_CACHE_HOME" in caplog.text


def test_trials_that_could_not_be_kept_are_said(
    cache_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(saved_trials, "_passport", lambda runtime: {})
    read_only.lock(cache_home, monkeypatch)
    with caplog.at_level(logging.WARNING, "headrace"):
        saved_trials.keep_trials(None, {})  # type: ignore[arg-type]
    assert "Read-only file system" in caplog.text
    assert "XDG_CACHE_HOME" in caplog.text


# How files are kept


def test_a_reader_has_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "folder" / "kept", tmp_path / "elsewhere"
    assert writable.keep(path, "old") is None
    elsewhere.hardlink_to(path)
    with path.open() as reader:
        assert writable.keep(path, "new") is None
        assert reader.read() == "old\n"
    assert (path.read_text(), elsewhere.read_text()) == ("new\n", "old\n")
    assert [*path.parent.iterdir()] == [path]


def test_a_link_stays_one_and_a_device_is_written_to(tmp_path: Path) -> None:
    path, link = tmp_path / "kept", tmp_path / "link"
    link.symlink_to(path)
    assert writable.keep(link, "text") is None
    assert link.is_symlink()
    assert path.read_text() == "text\n"
    assert writable.keep(Path("/dev/null"), "text") is None
    assert Path("/dev/null").is_char_device()


def test_where_nothing_can_be_put_beside_it_a_file_is_written_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(errno.EACCES, "no")

    path = tmp_path / "kept"
    path.write_text("a longer text\n")
    monkeypatch.setattr(os, "replace", fail)
    assert writable.keep(path, "text") is None
    assert path.read_text() == "text\n"
    assert [*tmp_path.iterdir()] == [path]
    assert isinstance(writable.keep(tmp_path, "text"), IsADirectoryError)
