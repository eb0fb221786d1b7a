"""Places where nothing can be written, and nothing has to be: caches of the hub, folders of models."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import read_only
from fake_hub import FakeHub, commit_of
from huggingface_hub import constants
from tiny_hub import MODEL, NEEDED, UNNEEDED, content, fetch, marks, refusal

from headrace import LLM, SamplingParams
from headrace.loaders.hub import remote_headers

ON_THE_HUB = NEEDED | UNNEEDED
CODES = [errno.EROFS, errno.EACCES, errno.ENOSPC]


@pytest.mark.parametrize("code", CODES)
def test_a_whole_cache_needs_no_writing(
    code: int, hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = fetch(cache)
    hub.forget()
    read_only.lock(cache, monkeypatch, code)
    assert fetch(cache) == directory
    assert fetch(cache, revision="main") == directory
    assert fetch(cache, revision=commit_of(ON_THE_HUB)) == directory
    assert hub.sent.total() == 0
    assert caplog.messages == []


def test_a_branch_that_cannot_be_noted_is_said(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commit = commit_of(ON_THE_HUB)
    directory = fetch(cache, revision=commit)
    read_only.lock(cache, monkeypatch)
    with caplog.at_level(logging.WARNING, "headrace"):
        assert fetch(cache) == directory
    (line,) = caplog.messages
    assert commit in line
    assert "Read-only file system" in line
    assert "--revision" in line
    assert fetch(cache, offline=True, revision=commit) == directory


def test_a_newer_state_on_the_hub(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = fetch(cache)
    hub.add(MODEL, {**NEEDED, "config.json": b"{ }"})
    read_only.lock(cache, monkeypatch)
    said = refusal(cache)
    assert "another state" in said
    assert "Read-only file system" in said
    assert "--offline" in said
    assert fetch(cache, offline=True) == directory
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert content(fetch(cache)) == marks(NEEDED)


def test_an_empty_cache_is_refused_with_a_place(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir()
    read_only.lock(cache, monkeypatch)
    assert "HF_HOME" in refusal(cache)


@pytest.mark.parametrize("code", CODES)
def test_a_plan_needs_no_cache(
    code: int, hub: FakeHub, cache: Path, checkpoints: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/model", {path.name: path.read_bytes() for path in checkpoints("mixtral").iterdir()})
    cache.mkdir()
    read_only.lock(cache, monkeypatch, code)
    found = remote_headers.fetch("org/model", cache_dir=cache)
    assert found.config["model_type"] == "mixtral"
    assert len(found.tensors) > 10
    assert list(cache.iterdir()) == []


def test_a_folder_of_a_model_is_only_read(checkpoints: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(max_new_tokens=2, ignore_eos=True)
    expected = LLM(checkpoints("qwen3_moe"), kernels="reference").generate([5], params)[0].token_ids
    read_only.lock(checkpoints("qwen3_moe"), monkeypatch)
    assert LLM(checkpoints("qwen3_moe"), kernels="reference").generate([5], params)[0].token_ids == expected


# ---- a file system that is really mounted so

SCRIPT = """set -e
for place in "$1" "$2"; do mount --bind "$place" "$place"; mount -o remount,ro,bind "$place"; done
touch "$1/x" 2>/dev/null && exit 9
shift 2
exec "$@"
"""


def test_a_run_on_read_only_mounts(hub: FakeHub, talker: Path, tmp_path: Path) -> None:
    """Model from a cache of the hub, no profile, and no place for one."""
    hub.add("org/talker", {path.name: path.read_bytes() for path in talker.iterdir()})
    (home := tmp_path / "home").mkdir()
    fetch(cache := tmp_path / "hub", "org/talker")
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace can be had here")
    program = [sys.executable, "-m", "headrace", "generate", "org/talker", "Hello", "-n", "3", "--ignore-eos"]
    command = [unshare, "-m", "bash", "-c", SCRIPT, "bash", str(home), str(cache), *program, "--cache-dir", str(cache)]
    environ = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": "", "HF_HOME": str(home)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    if "mount:" in done.stderr:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "not saved: Read-only file system" in done.stderr
    assert "XDG_CACHE_HOME" in done.stderr
    assert "--profile" in done.stderr
    quiet = subprocess.run([*command, "--no-measure"], capture_output=True, text=True, check=False, env=environ)
    assert quiet.returncode == 0
    assert "not saved" not in quiet.stderr
    assert "no prediction" in quiet.stderr
