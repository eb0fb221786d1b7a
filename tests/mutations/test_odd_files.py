"""Pipes, devices and files of absurd size where a model's files should be: refused at once, never waited for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace import LLM
from headrace.engine.planning.inspection import text
from headrace.errors import HeadraceError
from headrace.loaders import model_source, regular
from headrace.loaders.hub import local
from headrace.loaders.hub.local import DEMO_DIRECTORY
from headrace.loaders.tokens.tokenizer import Tokenizer

SMALL = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the demo model whose weights are a link."""
    for name in SMALL:
        shutil.copy(DEMO_DIRECTORY / name, tmp_path)
    (tmp_path / "model.safetensors").symlink_to(DEMO_DIRECTORY / "model.safetensors")
    return tmp_path


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """The body fails where it takes longer: waiting for a pipe would never end."""

    def over(*_: object) -> None:
        raise AssertionError(f"it took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def refusal(model: Path) -> str:
    with within(30), pytest.raises(HeadraceError) as found:
        load(model)
    return str(found.value)


def load(model: Path) -> None:
    LLM(str(model))
    Tokenizer.load(model)  # a model may have none, until text is needed


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_pipe_is_not_waited_for(name: str, model: Path) -> None:
    (model / name).unlink()
    os.mkfifo(model / name)
    assert name in refusal(model)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_device_is_refused(name: str, model: Path) -> None:
    (model / name).unlink()
    (model / name).symlink_to("/dev/zero")
    assert name in refusal(model)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_small_file_of_gigabytes_is_not_read(name: str, model: Path) -> None:
    with (model / name).open("r+b") as file:
        file.truncate(8 << 30)
    assert name in refusal(model)


def test_line_breaks_are_those_of_read_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("é\r\nb\rc\n".encode())
    assert regular.text(path) == path.read_text(encoding="utf-8") == "é\nb\nc\n"


def test_what_is_too_large_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" * 1001)
    assert len(regular.text(path, most=1001)) == 1001
    with pytest.raises(OSError, match="more than 0 MB"):
        regular.text(path, most=1000)


def test_a_small_file_takes_a_small_buffer(tmp_path: Path) -> None:
    (path := tmp_path / "config.json").write_text("{}")
    regular.text(path)
    tracemalloc.start()
    try:
        assert regular.text(path) == "{}"
        assert tracemalloc.get_traced_memory()[1] < 4 * regular.PART
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a**b.safetensors", "a" * 300, "x/" * 600 + "a", "\ud800", "a\0b", "a\nb"])
def test_a_shard_by_a_name_that_no_file_has(name: str, model: Path) -> None:
    """Looking for what lies beside it went by patterns, and by names that the system refuses."""
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    said = refusal(model)
    assert "index" in said
    assert "\n" not in said


def test_ends_in_a_pipe_are_not_waited_for(model: Path) -> None:
    """`headrace inspect` of a folder."""
    (model / "generation_config.json").unlink()
    os.mkfifo(model / "generation_config.json")
    with within(30):
        assert text._ends(model_source.find(str(model)), model)


def test_a_cache_that_names_a_place_outside_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    (refs := tmp_path / "theirs" / "refs").mkdir(parents=True)
    for place in (str(tmp_path / "mine"), "../../mine", "a/../../../mine", ".."):
        (refs / "main").write_text(place)
        assert local.model_in(tmp_path / "theirs") == tmp_path / "theirs"
    (refs / "main").unlink()
    os.mkfifo(refs / "main")
    with within(30):
        assert local.model_in(tmp_path / "theirs") == tmp_path / "theirs"
