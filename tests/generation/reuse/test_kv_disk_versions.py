"""The KV cache on disk after the program has changed: what another version computed is removed, with a line."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from headrace import LLM, SamplingParams
from headrace.engine.core import fingerprint
from headrace.engine.generation.disk.page_files import PageFiles
from headrace.engine.model.kv_cache import PAGE

FEW = SamplingParams(max_new_tokens=5, ignore_eos=True)
IDS = torch.randint(3, 160, (3 * PAGE + 3,), generator=torch.Generator().manual_seed(1)).tolist()


def reused(model: Path, folder: Path) -> int:
    """Tokens of the prompt that a new run of the program does not compute again."""
    with LLM(str(model), kv_disk=folder, dtype="float32", max_context=256, max_sequences=2, no_measure=True) as llm:
        return llm.generate([IDS], FEW)[0].reused_tokens


def test_pages_of_another_version_are_removed_with_one_line(
    checkpoints: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, other = checkpoints("qwen3_moe"), checkpoints("mixtral-llama3")
    for one in (model, other):
        assert reused(one, tmp_path) == 0
    before = {path.parent for path in tmp_path.glob("*/*.page")}
    assert len(before) == 2
    with caplog.at_level(logging.WARNING, "headrace"):
        assert (reused(model, tmp_path), caplog.records) == (3 * PAGE, [])
        monkeypatch.setattr(fingerprint, "sources", lambda folders: "other sources")
        fingerprint.of_program.cache_clear()
        assert reused(model, tmp_path) == 0
    monkeypatch.undo()
    fingerprint.of_program.cache_clear()
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(tmp_path) in line
    assert "3 files" in line
    assert "another version" in line
    left = {path.parent for path in tmp_path.glob("*/*.page")}
    assert len(left) == 2
    assert len(left & before) == 1, "of the other model all is there"
    assert reused(other, tmp_path) == 3 * PAGE


def test_every_change_of_a_source_counts(tmp_path: Path) -> None:
    (tmp_path / "room" / "inner").mkdir(parents=True)
    (tmp_path / "room" / "rope.py").write_text("scale = 1.0\n")
    (tmp_path / "room" / "inner" / "cache.py").write_text("page = 32\n")
    seen = [fingerprint.sources([tmp_path / "room"])]
    (tmp_path / "room" / "rope.py").write_text("scale = 2.0\n")
    seen.append(fingerprint.sources([tmp_path / "room"]))
    (tmp_path / "room" / "inner" / "cache.py").rename(tmp_path / "room" / "inner" / "cached.py")
    seen.append(fingerprint.sources([tmp_path / "room"]))
    (tmp_path / "room" / "inner" / "__init__.py").write_text("")
    seen.append(fingerprint.sources([tmp_path / "room"]))
    assert len(set(seen)) == len(seen)
    assert fingerprint.sources([tmp_path / "room"]) == seen[-1]


@pytest.mark.parametrize("room", fingerprint.ROOMS)
def test_every_room_that_counts_is_there(room: str) -> None:
    """One that was renamed would count for nothing."""
    assert list((fingerprint.PACKAGE / room).rglob("*.py"))
    assert len(fingerprint.of_program()) == fingerprint.HALF


def test_only_this_model_is_removed(tmp_path: Path) -> None:
    """The first half of a fingerprint is the model's."""
    mine, newer, foreign = bytes(16), bytes(8) + b"\1" * 8, b"\2" * 8 + bytes(8)
    for one in (mine, foreign):
        PageFiles(tmp_path, one, 10**6).write(bytes(16), "page", [memoryview(b"keys")], None)
    files = PageFiles(tmp_path, newer, 10**6)
    (left,) = tmp_path.glob("*/*.page")
    assert left.parent.name == foreign.hex()
    assert files.bytes == left.stat().st_size
