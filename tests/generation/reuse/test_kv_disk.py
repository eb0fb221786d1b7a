"""The KV cache on disk: found again by a later run, bit for bit; what becomes of files and disks that are not whole."""

from __future__ import annotations

import errno
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from family_runs import prompt

from headrace import LLM, EngineConfig, OptionError, SamplingParams
from headrace.engine.core.fingerprint import fingerprint
from headrace.engine.generation.disk import page_files, writer
from headrace.engine.generation.disk.kv_disk import KVDisk
from headrace.engine.generation.disk.page_files import HEADER, PageFiles
from headrace.engine.model.kv_cache import PAGE
from headrace.engine.sizes import parse_kv_disk
from headrace.kernels import Ops

Checkpoints = Callable[[str], Path]
FEW = SamplingParams(max_new_tokens=5, ignore_eos=True)


class Logits:
    """Takes the likeliest tokens, and keeps the logits that they were taken by."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, logits_SV: torch.Tensor, sequences: list[Any], ops: Ops) -> list[int]:
        self.seen.append(logits_SV.clone())
        return [int(token) for token in logits_SV.argmax(1)]


def load(path: Path, folder: Path | None, **options: Any) -> LLM:
    chosen = {"dtype": "float32", "max_context": 256, "max_sequences": 2, "no_measure": True, **options}
    return LLM(str(path), kv_disk=folder, **chosen)


def disk_of(llm: LLM) -> KVDisk:
    assert llm.loop.disk is not None
    return llm.loop.disk


def files_in(folder: Path, kind: str = "page") -> list[Path]:
    return sorted(folder.glob(f"*/*.{kind}"))


def ask(llm: LLM, ids: list[int], params: SamplingParams = FEW) -> tuple[list[int], int]:
    """New tokens, and how many of the prompt were not computed again."""
    (found,) = llm.generate([ids], params)
    return found.token_ids, found.reused_tokens


@pytest.mark.parametrize("variant", ["qwen3_moe", "deepseek_v3", "qwen3_next", "lfm2_moe", "nemotron_h"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_later_run_goes_on_bit_for_bit(variant: str, dtype: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """The same logits as where the pages are still in memory; latents and recurrent states too."""
    ids = prompt(5 * PAGE + 7, 1)
    logits = Logits()
    with load(checkpoints(variant), tmp_path, dtype=dtype, sampler=logits) as llm:
        first, reused = ask(llm, ids)
        assert reused == 0
        logits.seen.clear()
        again, reused = ask(llm, ids)
        assert reused == 5 * PAGE
        wanted = list(logits.seen)
    assert len(files_in(tmp_path)) == 5
    has_states = variant in ("qwen3_next", "lfm2_moe", "nemotron_h")
    assert bool(files_in(tmp_path, "state")) is has_states
    logits.seen.clear()
    with load(checkpoints(variant), tmp_path, dtype=dtype, sampler=logits) as later:
        assert ask(later, ids) == (again, 5 * PAGE)
        assert disk_of(later).restored == 5 + has_states
        assert all(torch.equal(a, b) for a, b in zip(logits.seen, wanted, strict=True))
        assert first == again


def test_an_answer_is_kept_too_and_a_chat_goes_on(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Of a recurrent model the state that was the newest when the answer ended."""
    for variant in ("qwen3_moe", "qwen3_next"):
        folder, ids, long = tmp_path / variant, prompt(PAGE + 5, 2), SamplingParams(max_new_tokens=70, ignore_eos=True)
        with load(checkpoints(variant), folder) as llm:
            answer, _ = ask(llm, ids, long)
        chat = [*ids, *answer, *prompt(9, 3)]
        with load(checkpoints(variant), None) as alone, load(checkpoints(variant), folder) as later:
            assert ask(later, chat)[1] == (len(ids) + len(answer) - 1) // PAGE * PAGE
            assert ask(later, [*ids, *answer, 5])[1] > 0
            assert ask(later, prompt(100, 4)) == ask(alone, prompt(100, 4))


def test_what_memory_has_forgotten_is_read_in_the_same_run(checkpoints: Checkpoints, tmp_path: Path) -> None:
    with load(checkpoints("qwen3_moe"), tmp_path, max_context=160, max_sequences=1) as llm:
        table = llm.loop.pages
        ids = prompt(4 * PAGE + 3, 5)
        wanted, _ = ask(llm, ids)
        disk_of(llm).writer.flush()
        for seed in range(len(table.owners) // 4 + 2):
            ask(llm, prompt(4 * PAGE + 3, 100 + seed))
        disk_of(llm).writer.flush()
        assert table.reuse(ids)[1] == [], "memory has forgotten it"
        assert ask(llm, ids) == (wanted, 4 * PAGE)


def test_pages_of_requests_together(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Some from disk, some new, more than run at once; all as without a disk."""
    prompts = [prompt(PAGE * n + 5, 10 + n) for n in range(1, 7)]
    prompts += [[*prompts[3][: 2 * PAGE], *prompt(40, 30)]]
    with load(checkpoints("qwen3_moe"), None) as llm:
        wanted = [ask(llm, one)[0] for one in prompts]
    with load(checkpoints("qwen3_moe"), tmp_path) as llm:
        for one in prompts[::2]:
            ask(llm, one)
    with load(checkpoints("qwen3_moe"), tmp_path) as later:
        found = later.generate(prompts, FEW)
        assert [one.token_ids for one in found] == wanted
        assert [one.reused_tokens // PAGE for one in found[:6:2]] == [1, 3, 5]
        pages = later.loop.pages
        assert pages.available == len(pages.owners)
        assert not any(pages.owners)


def test_a_request_that_is_cancelled_while_it_waits(checkpoints: Checkpoints, tmp_path: Path) -> None:
    ids = prompt(6 * PAGE + 3, 6)
    with load(checkpoints("qwen3_moe"), tmp_path) as llm:
        ask(llm, ids)
    with load(checkpoints("qwen3_moe"), tmp_path) as later:
        request = later.admission.request(ids, FEW)
        later.loop.start(request)
        with later.loop.lock:
            later.loop.carry_out()
            later.loop.scheduler.next_batch()
            later.loop.cancel(request)
            later.loop.carry_out()
        assert ask(later, ids)[1] == 6 * PAGE
        assert later.loop.pages.available == len(later.loop.pages.owners)


# ---- files that are not whole


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "a bit":
        data[HEADER.size + len(data) // 3] ^= 4
    elif how == "cut off":
        del data[len(data) // 2 :]
    elif how == "of another":
        data[20] ^= 1
    elif how == "foreign":
        data[:16] = b"something else.."
    else:
        data.clear()
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["a bit", "cut off", "of another", "foreign", "empty"])
def test_a_damaged_file_is_removed_and_computed_again(
    how: str, checkpoints: Checkpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ids = prompt(4 * PAGE + 3, 7)
    with load(checkpoints("qwen3_moe"), tmp_path) as llm:
        wanted, _ = ask(llm, ids)
        digests = llm.loop.pages.reuse(ids)[1]
    path = next(p for p in files_in(tmp_path) if p.stem == digests[2].hex())
    damage(path, how)
    with load(checkpoints("qwen3_moe"), tmp_path) as later, caplog.at_level(logging.WARNING, "headrace"):
        assert ask(later, ids) == (wanted, 2 * PAGE)
    (line,) = [r.getMessage() for r in caplog.records]
    assert str(path) in line
    assert "it is removed" in line
    with load(checkpoints("qwen3_moe"), tmp_path) as last:
        assert ask(last, ids) == (wanted, 4 * PAGE), "it was written again"


def test_a_folder_may_hold_other_things(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """They stay, but for what a run that was killed left half written an hour ago."""
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / f"{'a' * 32}.page").write_text("mine")
    ids = prompt(2 * PAGE + 3, 8)
    with load(checkpoints("qwen3_moe"), tmp_path) as llm:
        ask(llm, ids)
    own = files_in(tmp_path)[0].parent
    own = own if own.name != "folder" else files_in(tmp_path)[-1].parent
    (old := own / f"{'b' * 32}.page.1.tmp").write_text("half")
    (new := own / f"{'c' * 32}.page.1.tmp").write_text("half")
    (mine := own / "notes.txt").write_text("mine")
    os.utime(old, (0, 0))
    with load(checkpoints("qwen3_moe"), tmp_path) as later:
        assert ask(later, ids)[1] == 2 * PAGE
    assert (old.exists(), new.exists(), mine.exists()) == (False, True, True)
    assert (tmp_path / "folder" / f"{'a' * 32}.page").read_text() == "mine"


def test_another_model_finds_nothing_and_takes_nothing_away(checkpoints: Checkpoints, tmp_path: Path) -> None:
    ids, options = prompt(3 * PAGE + 3, 9), {"dtype": "float32"}
    with load(checkpoints("qwen3_moe"), tmp_path, **options) as llm:
        ask(llm, ids)
        own = fingerprint(llm.parts)
        weight = llm.parts.weights.embed.data
        weight[weight.shape[0] // 2].fill_(1)
        assert fingerprint(llm.parts) != own, "another training"
    others = [{"dtype": "bfloat16"}, {"expert_format": "q8_0"}, {"kernels": "reference"}, {"cpu_activations": "bf16"}]
    for other in others:
        with load(checkpoints("qwen3_moe"), tmp_path, **{**options, **other}) as llm:
            assert ask(llm, ids)[1] == 0, other
    with load(checkpoints("qwen3_moe"), tmp_path, **options) as again:
        assert ask(again, ids)[1] == 3 * PAGE
        assert fingerprint(again.parts) == own


# ---- the limit


def parts(size: int, seed: int) -> list[memoryview]:
    return [memoryview(random.Random(seed).randbytes(size))]


def digest(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_what_was_used_longest_ago_goes_and_of_a_prompt_its_end(tmp_path: Path) -> None:
    files = PageFiles(tmp_path, bytes(16), limit=20 * 1000)
    before = None
    for number in range(12):
        files.write(digest(number), "page", parts(900, number), before)
        before = digest(number)
    files.use(digest(n) for n in range(12))
    for number in range(100, 112):
        files.write(digest(number), "page", parts(900, number), None)
        assert files.bytes <= files.limit
    there = [n for n in range(12) if files.has(digest(n))]
    assert 0 < len(there) < 12
    assert there == list(range(len(there)))
    assert files.has(digest(111))
    assert files.bytes == sum(p.stat().st_size for p in files_in(tmp_path)) == 964 * len(files_in(tmp_path))


def test_a_later_run_knows_what_was_used_when_and_keeps_to_its_limit(tmp_path: Path) -> None:
    files = PageFiles(tmp_path, bytes(16), limit=10**6)
    for number in range(8):
        files.write(digest(number), "page", parts(900, number), None)
    files.use([digest(0)])
    files.stamp()
    later = PageFiles(tmp_path, bytes([1] * 16), limit=3 * 964 + 10)
    assert later.bytes == 8 * 964
    later.write(digest(50), "page", parts(900, 50), None)
    assert len(files_in(tmp_path)) <= 3
    assert Path(files.path(digest(0))).exists(), "it was used last"
    assert not files.read(digest(5), "page", [memoryview(bytearray(900))]), "another process has removed it"
    assert not files.has(digest(5))
    later.write(digest(51), "page", parts(10**4, 51), None)
    assert not later.has(digest(51)), "larger than all of it"


# ---- a disk that refuses


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_ends_writing_and_no_request(
    number: int, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    known, new = prompt(2 * PAGE + 3, 11), prompt(5 * PAGE + 3, 12)
    with load(checkpoints("qwen3_moe"), tmp_path) as llm:
        ask(llm, known)
        wanted = ask(llm, new)[0]
    for path in files_in(tmp_path)[:]:
        if path.stem not in [d.hex() for d in llm.loop.pages.reuse(known)[1]]:
            path.unlink()

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with load(checkpoints("qwen3_moe"), tmp_path) as later, caplog.at_level(logging.WARNING, "headrace"):
        monkeypatch.setattr(page_files.os, "replace", refuse)
        assert ask(later, new) == (wanted, 0)
        assert ask(later, prompt(70, 13))[0]
        assert ask(later, known)[1] == 2 * PAGE, "what is there is still read"
        disk_of(later).writer.flush()
    (line,) = [r.getMessage() for r in caplog.records]
    assert os.strerror(number) in line
    assert not list(tmp_path.glob("*/*.tmp"))


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(checkpoints: Checkpoints, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="cannot write the KV cache"):
        load(checkpoints("qwen3_moe"), tmp_path / "file" / "folder")


def test_a_slow_disk_holds_up_no_pass(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing stands still; the queue fills, requests go on, and what was left out comes when it is used again."""
    goes, write = threading.Event(), PageFiles.write

    def slow(self: PageFiles, *arguments: Any) -> None:
        goes.wait(60)
        write(self, *arguments)

    monkeypatch.setattr(PageFiles, "write", slow)
    monkeypatch.setattr(writer, "MOST_WAITING", 2)
    ids = prompt(6 * PAGE + 3, 14)
    with load(checkpoints("qwen3_moe"), tmp_path) as llm:
        wanted, _ = ask(llm, ids)
        assert files_in(tmp_path) == []
        goes.set()
        disk_of(llm).writer.flush()
        assert 0 < len(files_in(tmp_path)) < 6
        for _ in range(6):
            assert ask(llm, ids) == (wanted, 6 * PAGE)
            disk_of(llm).writer.flush()
        assert len(files_in(tmp_path)) == 6


def test_a_page_that_was_taken_for_another_prompt_is_not_written(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between asking and copying, and while it is copied."""
    copies, held = threading.Semaphore(0), writer.host_copy

    def late(part: torch.Tensor) -> torch.Tensor:
        copies.acquire(timeout=60)
        return held(part)

    monkeypatch.setattr(writer, "host_copy", late)
    ids = prompt(4 * PAGE + 3, 15)
    with load(checkpoints("qwen3_moe"), tmp_path, max_context=160, max_sequences=1) as llm:
        ask(llm, ids)
        table = llm.loop.pages
        taken = table.allocate(table.available)
        for _ in range(10_000):
            copies.release()
        disk_of(llm).writer.flush()
        assert files_in(tmp_path) == []
        table.release(taken)


def test_the_cache_is_too_small_for_what_is_held(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """A page in the middle is damaged while those behind it are still in memory: nobody waits for ever."""
    ids = prompt(7 * PAGE + 3, 17)
    with load(checkpoints("qwen3_moe"), tmp_path, max_context=256, max_sequences=1) as llm:
        wanted, _ = ask(llm, ids)
        disk_of(llm).writer.flush()
        table, digests = llm.loop.pages, llm.loop.pages.reuse(ids)[1]
        table.release([table.page_of[one] for one in digests])
        room = table.allocate(len(table.free))
        table.idle.again.move_to_end(table.page_of[digests[1]], last=False)
        room += table.allocate(1)
        assert digests[1] not in table.page_of
        damage(Path(disk_of(llm).files.path(digests[1])), "a bit")
        table.release(room)
        assert ask(llm, ids) == (wanted, PAGE)
        assert not any(table.owners)


def test_what_has_no_room_is_read_when_it_has(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """A long prompt waits beside one that holds most pages, and is read once that has ended."""
    ids, other = prompt(5 * PAGE + 3, 18), prompt(5 * PAGE + 3, 19)
    with load(checkpoints("qwen3_moe"), tmp_path) as llm:
        wanted, _ = ask(llm, ids)
    with load(checkpoints("qwen3_moe"), tmp_path) as later:
        table = later.loop.pages
        taken = table.allocate(table.available - 8)
        requests = [later.admission.request(other, FEW), later.admission.request(ids, FEW)]
        requests[0].sequence.priority = -1
        later.loop.run(requests)
        assert [one.sequence.reused for one in requests] == [0, 5 * PAGE]
        assert requests[1].sequence.completion == wanted
        table.release(taken)


def test_a_cache_beside_experts_elsewhere(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """On a GPU that RAM plays; what the CPU alone has computed is another cache."""
    ids, beside = prompt(3 * PAGE + 3, 20), {"device": "simulated", "cpu_moe": True}
    with load(checkpoints("qwen3_moe"), tmp_path, **beside) as llm:
        wanted, _ = ask(llm, ids)
    with load(checkpoints("qwen3_moe"), tmp_path, **beside) as later:
        assert ask(later, ids) == (wanted, 3 * PAGE)
    with load(checkpoints("qwen3_moe"), tmp_path) as alone:
        assert ask(alone, ids)[1] == 0


def test_off_by_default(checkpoints: Checkpoints) -> None:
    with load(checkpoints("qwen3_moe"), None) as llm:
        assert llm.loop.disk is None
        assert llm.loop.pages.on_known is None


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("a/b", ("a/b", 20)),
        ("a:50", ("a", 50)),
        ("a:0.5", ("a", 0.5)),
        ("c:/a:7GB", ("c:/a", 7)),
        ("c:/a", ("c:/a", 20)),
    ],
)
def test_the_option(asked: str, found: tuple[str, float]) -> None:
    assert parse_kv_disk(asked) == (Path(found[0]), found[1])


@pytest.mark.parametrize("asked", ["a:", "a:0", "a:-1", ":5", "a:much", "a:inf"])
def test_what_is_no_option(asked: str) -> None:
    with pytest.raises(OptionError, match="kv_disk is"):
        EngineConfig(kv_disk=asked)


def test_nobody_waits_for_a_reader_that_fails(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = prompt(3 * PAGE + 3, 16)
    with load(checkpoints("qwen3_moe"), tmp_path) as llm:
        wanted, _ = ask(llm, ids)
    with load(checkpoints("qwen3_moe"), tmp_path) as later:

        def fail(*_: object) -> bool:
            time.sleep(0.1)
            raise RuntimeError("a test")

        monkeypatch.setattr(PageFiles, "read", fail)
        assert ask(later, ids) == (wanted, 0)
