"""A disk that fails under a model that runs: an error that names the file and what to do, never other text; requests
that the failure is not about go on."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import tiny
from refusals import refused

from headrace import LLM
from headrace.engine.experts.disk import reads
from headrace.engine.experts.disk.disk_cache import DiskCache
from headrace.engine.experts.disk.reads import Reading
from headrace.errors import CheckpointError
from headrace.loaders.files import held
from headrace.loaders.files.held import Bounce, HeldFile

PROMPT, OTHER = [5, 11, 3, 70, 29, 8], [7, 7, 100, 41]
PARAMS = {"max_new_tokens": 16, "ignore_eos": True}
Read = Callable[[int, memoryview, int], int]
FILE = "model.safetensors"


@pytest.fixture
def model(checkpoints: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    shutil.copytree(checkpoints("qwen3_moe"), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def said(checkpoints: Callable[[str], Path]) -> list[int]:
    """What it says to the prompt with all experts in RAM."""
    with LLM(checkpoints("qwen3_moe"), max_context=64) as llm:
        return llm.generate([PROMPT], PARAMS)[0].token_ids


@pytest.fixture
def llm(model: Path) -> Iterator[LLM]:
    """Nothing is resident: every expert that is chosen is read."""
    with LLM(model, placement="disk", policy="all-ram", max_context=64) as found:
        yield found


def tokens_before_the_error(llm: LLM, fail: Callable[[], None], at: int = 5) -> list[int]:
    """What a stream gives until an error of the disk, which begins after so many tokens."""
    found: list[int] = []
    with pytest.raises(CheckpointError) as caught:  # noqa: PT012
        for chunk in llm.stream(PROMPT, PARAMS):
            found.append(chunk.token_id)
            if len(found) == at:
                fail()
    assert FILE in str(caught.value)
    assert any(word in str(caught.value) for word in ("start again", "copy the model", "download it again"))
    return found


def injected(monkeypatch: pytest.MonkeyPatch, change: Callable[[Read], Read]) -> None:
    monkeypatch.setattr(held, "pread", change(held.pread))


def failing(broken: list[int], error: int = errno.EIO) -> Callable[[Read], Read]:
    """Reads that fail as long as the list has anything."""

    def change(read: Read) -> Read:
        def failing_read(fd: int, into: memoryview, offset: int) -> int:
            if broken:
                raise OSError(error, os.strerror(error))
            return read(fd, into, offset)

        return failing_read

    return change


def test_a_file_that_is_cut_off(llm: LLM, model: Path, said: list[int]) -> None:
    found = tokens_before_the_error(llm, lambda: os.truncate(model / FILE, 4096))
    assert found == said[:5]
    with refused(CheckpointError, f"{model / FILE} has 4096 bytes", "start again"):
        llm.generate([PROMPT], PARAMS)


def test_a_file_that_is_written_to(llm: LLM, model: Path, said: list[int]) -> None:
    def change() -> None:
        with (model / FILE).open("r+b") as file:
            file.seek(-8, os.SEEK_END)
            file.write(bytes(8))
        os.utime(model / FILE, (1, 1))

    assert tokens_before_the_error(llm, change) == said[:5]


@pytest.mark.parametrize("is_replaced", [True, False])
def test_another_file_under_the_name_is_never_read(
    is_replaced: bool, llm: LLM, model: Path, said: list[int], tmp_path: Path
) -> None:
    """The file that was opened stays readable without its name."""
    found = []
    for chunk in llm.stream(PROMPT, PARAMS):
        found.append(chunk.token_id)
        if len(found) == 5 and is_replaced:
            tiny.build("qwen3_moe", tmp_path / "other", seed=1)
            (tmp_path / "other" / FILE).replace(model / FILE)
        elif len(found) == 5:
            (model / FILE).unlink()
    assert found == said


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_for_a_while(
    error: int, llm: LLM, said: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests that come when it has recovered get the right text."""
    broken: list[int] = []

    injected(monkeypatch, failing(broken, error))
    assert tokens_before_the_error(llm, lambda: broken.append(1)) == said[:5]
    assert "it is read again" in caplog.text
    broken.clear()
    assert llm.generate([PROMPT], PARAMS)[0].token_ids == said


@pytest.mark.parametrize("policy", ["lru", "next-layer", "all-ram"])
def test_one_error_is_read_over(
    policy: str, model: Path, said: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    count = [0]

    def change(read: Read) -> Read:
        def failing(fd: int, into: memoryview, offset: int) -> int:
            count[0] += 1
            if count[0] % 7 == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return read(fd, into, offset)

        return failing

    with LLM(model, placement="disk", policy=policy, expert_cache="40%", max_context=64) as llm:
        injected(monkeypatch, change)
        assert llm.generate([PROMPT], PARAMS)[0].token_ids == said
    assert f"{FILE} at byte" in caplog.text


def test_residents_whose_read_failed_are_read_again(
    model: Path, said: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetched and prefetched ones have a place already."""
    broken: list[int] = []

    injected(monkeypatch, failing(broken))
    with LLM(model, placement="disk", policy="next-layer", expert_cache="50%", max_context=64) as llm:
        for _ in range(3):
            tokens_before_the_error(llm, lambda: broken.append(1))
            broken.clear()
        assert llm.generate([PROMPT], PARAMS)[0].token_ids == said
        cache = llm.parts.expert_cache
        assert cache is not None
        free = sum(len(one) for one in cache.slots.zones.free.values())
        assert free == cache.slots.count - sum(map(len, cache.residents.by_layer))


def test_other_requests_go_on(model: Path, said: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    broken: list[int] = []

    injected(monkeypatch, failing(broken))
    with LLM(model, placement="disk", policy="lru", expert_cache="30%", max_context=64) as llm:
        stream = llm.stream(PROMPT, PARAMS)
        found = [next(stream).token_id for _ in range(4)]
        broken.append(1)
        with pytest.raises(CheckpointError):
            llm.generate([OTHER], PARAMS)
        broken.clear()
        assert [*found, *(chunk.token_id for chunk in stream)] == said


def test_what_an_earlier_pass_failed_to_read_is_read_again(
    model: Path, said: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reads are under way when another request wants the same experts, and fail while that waits."""
    under_way: set[Reading] = set()
    with LLM(model, placement="disk", policy="lru", expert_cache="30%", max_context=64) as llm:
        cache = llm.parts.expert_cache
        assert isinstance(cache, DiskCache)
        ready, wait, stop = cache.reads, cache.reads.wait, cache.reads.stop

        def fail(readings: Iterable[Reading]) -> None:
            for reading in under_way.intersection(readings):
                under_way.remove(reading)
                ready._end(reading, OSError(errno.EIO, "gone"))

        monkeypatch.setattr(ready, "wait", lambda readings: (fail(readings), wait(readings))[1])
        monkeypatch.setattr(ready, "stop", lambda reading: (fail([reading]), stop(reading))[1])
        stream = llm.stream(PROMPT, PARAMS)
        found = [next(stream).token_id for _ in range(4)]
        for key in [(n, expert) for n, there in enumerate(cache.residents.by_layer) for expert in there]:
            cache.slots.at(key).zero_()
            reading = cache.coming[key] = Reading("expert", [lambda: None])
            reading.steps.clear()
            reading.running = 1
            under_way.add(reading)
        assert [*found, *(chunk.token_id for chunk in stream)] == said
        assert cache.late_arrivals > 0


def test_recurrent_states_do_not_go_on_after_half_a_pass(
    checkpoints: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have taken the token in that the next pass would give them again."""
    broken: list[int] = []

    with LLM(checkpoints("qwen3_next"), max_context=64) as llm:
        said = llm.generate([PROMPT], PARAMS)[0].token_ids
    injected(monkeypatch, failing(broken))
    with LLM(checkpoints("qwen3_next"), placement="disk", policy="all-ram", max_context=64) as llm:
        stream = llm.stream(PROMPT, PARAMS)
        found = [next(stream).token_id for _ in range(4)]
        broken.append(1)
        with pytest.raises(CheckpointError):
            llm.generate([OTHER], PARAMS)
        broken.clear()
        with pytest.raises(CheckpointError):
            found += [chunk.token_id for chunk in stream]
        assert found == said[: len(found)]
        assert llm.generate([PROMPT], PARAMS)[0].token_ids == said


def test_reads_that_end_early_go_on(llm: LLM, said: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def change(read: Read) -> Read:
        return lambda fd, into, offset: read(fd, into[: max(4096, len(into) // 2)], offset)

    injected(monkeypatch, change)
    assert llm.generate([PROMPT], PARAMS)[0].token_ids == said


def test_reads_that_bring_nothing(llm: LLM, said: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    found = tokens_before_the_error(llm, lambda: injected(monkeypatch, lambda _: lambda fd, into, offset: 0))
    assert found == said[:5]


def test_a_slow_disk_is_waited_for(
    llm: LLM, said: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waited: list[float] = []

    def change(read: Read) -> Read:
        def slow(fd: int, into: memoryview, offset: int) -> int:
            if len(waited) < 3:
                waited.append(0.3)
                time.sleep(0.3)
            return read(fd, into, offset)

        return slow

    monkeypatch.setattr(reads, "SLOW_S", 0.05)
    injected(monkeypatch, change)
    with caplog.at_level(logging.WARNING):
        assert llm.generate([PROMPT], PARAMS)[0].token_ids == said
    assert "the disk has not answered" in caplog.text
    assert FILE in caplog.text


@pytest.mark.parametrize("refuses", ["open", "read"])
def test_without_direct_reads_the_system_is_told_to_forget(
    refuses: str, model: Path, said: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, read, forgotten = held._open, held.pread, [0]
    direct: set[int] = set()

    def open_(path: Path | str, flags: int) -> int:
        if flags & os.O_DIRECT and refuses == "open":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fd = opened(path, flags)
        (direct.add if flags & os.O_DIRECT else direct.discard)(fd)
        return fd

    def pread(fd: int, into: memoryview, offset: int) -> int:
        if fd in direct:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return read(fd, into, offset)

    def advise(*given: int) -> None:
        forgotten[0] += given[3] == os.POSIX_FADV_DONTNEED

    monkeypatch.setattr(held, "_open", open_)
    monkeypatch.setattr(held, "pread", pread)
    monkeypatch.setattr(os, "posix_fadvise", advise)
    with LLM(model, placement="disk", expert_cache="25%", max_context=64) as llm:
        assert any("refuses direct reads (Invalid argument)" in note for note in llm.notes)
        assert llm.generate([PROMPT], PARAMS)[0].token_ids == said
    assert forgotten[0]


def test_a_file_that_is_replaced_while_it_is_loaded(model: Path, tmp_path: Path) -> None:
    file = HeldFile(model / FILE, Bounce())
    file.check_name()
    shutil.copy(model / FILE, tmp_path / "other")
    (tmp_path / "other").replace(model / FILE)
    with refused(CheckpointError, f"{model / FILE} was replaced by another file", "start again"):
        file.check_name()
    (model / FILE).unlink()
    with refused(CheckpointError, f"{model / FILE} was removed", "start again"):
        file.check_name()
    file.close()
