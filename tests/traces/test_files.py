"""Traces as files: what is written is read again, whatever the shape; what is damaged is read up to there."""

from __future__ import annotations

import errno
import json
import logging
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace import MemoryNeeded, OptionError
from headrace.engine.traces import reader, writer
from headrace.engine.traces.layout import BLOCK, MAGIC, TOKENS, Columns, Header, block, pack_choices
from headrace.engine.traces.writer import Writer
from headrace.loaders import memory


def header(**more: Any) -> Header:
    values: dict[str, Any] = {
        "model": "m", "family": "f", "digest": "d", "formats": {"experts": "q4_0"}, "layers": [1, 2, 4],
        "expert_bytes": [10, 10, 20], "experts": 16,
        "top_k": 2, "most_weight": 1.0, "version": "0",
    }  # fmt: skip
    return Header(**{**values, **more})


def columns(of: Header, tokens: int, index: int = 0, seed: int = 0) -> Columns:
    draws = np.random.default_rng(seed)
    shape = len(of.layers), tokens, of.top_k
    ids = draws.integers(0, of.experts + 1, shape).astype(np.int32)
    weights = draws.random(shape).astype(np.float32) * of.most_weight
    place = np.arange(tokens, dtype=np.uint32)
    flags = (place % 2).astype(np.uint8)
    return Columns(np.full(tokens, index, np.uint32), place + 7, place, flags, pack_choices(of, ids, weights))


def join(many: list[Columns]) -> Columns:
    flat = [np.concatenate(column) for column in zip(*(one[:4] for one in many), strict=True)]
    return Columns(*flat, np.concatenate([one.choices for one in many], axis=1))


def write(path: Path, of: Header, passes: list[Columns], **options: Any) -> None:
    made = Writer(path, of, join, **options)
    for one in passes:
        made.put(one, len(one.passes), one.choices.nbytes)
    made.close()


@pytest.mark.parametrize("experts", [2, 9, 64, 128, 255, 256, 512, 32767])
def test_what_is_written_is_read_again(experts: int, tmp_path: Path) -> None:
    of, path = header(experts=experts, most_weight=2.5), tmp_path / "t"
    draws = np.random.default_rng(1)
    ids = draws.integers(-1, experts, (3, 50, 2)).astype(np.int32)
    weights = np.where(ids < 0, 0, draws.random(ids.shape) * 2.5).astype(np.float32)
    given = np.where(ids < 0, of.none, ids)
    place = np.arange(50, dtype=np.uint32)
    write(path, of, [Columns(place, place, place, place.astype(np.uint8) % 2, pack_choices(of, given, weights))])
    found = reader.read(path)
    assert (found.damage, found.lost, found.header) == ("", 0, of)
    assert np.array_equal(found.ids, ids), "-1 where there is none"
    assert np.abs(found.weights - weights).max() <= 2.5 / of.steps / 2 + 1e-6, "to half a step"
    assert found.choices.nbytes == 2 * ids.size


def test_blocks_join_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BLOCK_BYTES", 200)
    monkeypatch.setattr(writer, "POLL_S", 0.001)
    of, path, passes = header(), tmp_path / "t", [columns(header(), 5 + i, i, i) for i in range(40)]
    made = Writer(path, of, join)
    for one in passes:
        made.put(one, len(one.passes), 1)
        time.sleep(0.001)
    made.close()
    assert path.read_bytes().count(TOKENS) > 1, "several blocks"
    found = reader.read(path)
    assert np.array_equal(found.choices, np.concatenate([one.choices for one in passes], axis=1))
    assert np.array_equal(found.passes, np.concatenate([one.passes for one in passes]))
    assert np.array_equal(found.generated, np.concatenate([one.generated for one in passes]) == 1)
    assert found.damage == ""


def cut_off(tmp_path: Path) -> tuple[Path, bytes, list[int]]:
    """A file of three blocks, its bytes, and where each block ends."""
    of, path = header(), tmp_path / "t"
    blocks = [block([columns(of, 10 * (i + 1), i, i)], 1) for i in range(3)]
    start = of.as_bytes()
    ends = [len(start)]
    for one in blocks:
        ends.append(ends[-1] + len(one))
    return path, start + b"".join(blocks) + BLOCK.pack(b"DONE", 60, 3, 0, 0), ends


def test_a_file_that_is_cut_off_anywhere_is_read_up_to_there(tmp_path: Path) -> None:
    path, whole, ends = cut_off(tmp_path)
    path.write_bytes(whole)
    assert (len(reader.read(path)), reader.read(path).damage) == (60, "")
    tokens = [0, 10, 30, 60]
    for size in range(ends[0], len(whole)):
        path.write_bytes(whole[:size])
        found = reader.read(path)
        assert len(found) == tokens[sum(end <= size for end in ends) - 1]
        assert "was stopped" in found.damage
    for size in range(ends[0]):
        path.write_bytes(whole[:size])
        with pytest.raises(OptionError, match=r"no trace|header"):
            reader.read(path)


def test_a_damaged_block_and_what_follows_is_left_out(tmp_path: Path) -> None:
    path, whole, ends = cut_off(tmp_path)
    damaged = bytearray(whole)
    damaged[ends[1] + BLOCK.size + 5] ^= 1
    path.write_bytes(damaged)
    found = reader.read(path)
    assert (len(found), found.damage) == (10, "a block is damaged: its checksum is another")
    path.write_bytes(whole[: ends[1]] + b"JUNK" + whole[ends[1] + 4 :])
    assert "unknown kind" in reader.read(path).damage
    path.write_bytes(whole[: ends[3]] + BLOCK.pack(b"DONE", 61, 3, 0, 0))
    assert reader.read(path).damage == "its end counts 61 tokens"


def test_a_block_that_lies_about_its_tokens_is_damaged(tmp_path: Path) -> None:
    of, path = header(), tmp_path / "t"
    made = block([columns(of, 10)], 1)
    _, _, _, size, check = BLOCK.unpack(made[: BLOCK.size])
    for tokens, word in ((9, "more"), (11, "fewer"), (1 << 31, "fewer")):
        path.write_bytes(of.as_bytes() + BLOCK.pack(TOKENS, tokens, 1, size, check) + made[BLOCK.size :])
        found = reader.read(path)
        assert len(found) == 0
        assert f"it holds {word} than" in found.damage


def test_what_zlib_makes_of_little_is_refused_before_it_takes_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block of a few kilobytes whose tokens are megabytes, time and again."""
    of, path, tokens = header(), tmp_path / "t", 100_000
    zeros = np.zeros(tokens, np.uint32)
    choices = np.zeros((len(of.layers), tokens, of.top_k), np.uint16)
    made = block([Columns(zeros, zeros, zeros, zeros.astype(np.uint8), choices)], 1)
    assert len(made) < 20_000
    path.write_bytes(of.as_bytes() + 400 * made + BLOCK.pack(b"DONE", 400 * tokens, 400, 0, 0))
    monkeypatch.setattr(memory, "free_memory", lambda: 1_000_000_000)
    tracemalloc.start()
    with pytest.raises(MemoryNeeded, match=r"needs 2\.00 GB of memory \(the 40000000 tokens of .*record fewer tokens"):
        reader.read(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    path.write_bytes(of.as_bytes() + 3 * made + BLOCK.pack(b"DONE", 3 * tokens, 3, 0, 0))
    assert len(reader.read(path)) == 3 * tokens


def test_a_block_that_promises_more_than_the_file_has_takes_no_memory(tmp_path: Path) -> None:
    of, path = header(), tmp_path / "t"
    made = block([columns(of, 10)], 1)
    path.write_bytes(of.as_bytes() + made + BLOCK.pack(TOKENS, 10, 1, (1 << 32) - 1, 0) + made[BLOCK.size :])
    tracemalloc.start()
    found = reader.read(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert (len(found), "ends within a block" in found.damage) == (10, True)


@pytest.mark.parametrize("change", [{"experts": 0}, {"experts": "x"}, {"top_k": 99}, {"layers": [2, 1]}, {"layers": 3}])
def test_headers_that_cannot_be_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    values = {**header().__dict__, **change}
    path = tmp_path / "t"
    text = json.dumps(values).encode()
    path.write_bytes(MAGIC + len(text).to_bytes(4, "little") + text)
    with pytest.raises(OptionError, match="record it again"):
        reader.read(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t"
    for data in (b"", b"HRTRACE1", b'{"ids": []}', MAGIC + b"\xff\xff\xff\xff{}", MAGIC + b"\x02\0\0\0[]"):
        path.write_bytes(data)
        with pytest.raises(OptionError):
            reader.read(path)
    with pytest.raises(OptionError, match="cannot read the trace"):
        reader.read(tmp_path / "missing")


def test_a_writer_that_cannot_keep_up_leaves_passes_out_and_says_how_many(tmp_path: Path) -> None:
    """Whoever gives passes never waits, and no more is held than was allowed."""
    of, path, go = header(), tmp_path / "t", threading.Event()

    def slow(many: list[Columns]) -> Columns:
        go.wait(10)
        return join(many)

    made, one = Writer(path, of, slow, most_waiting=1000), columns(of, 4)
    start = time.monotonic()
    for _ in range(100):
        made.put(one, 4, 400)
        assert made.size <= 1000
    assert time.monotonic() - start < 1, "nobody waits for the disk"
    go.set()
    made.close()
    found = reader.read(path)
    assert found.damage == ""
    assert found.lost > 0
    assert len(found) + found.lost == 400


def test_a_full_disk_ends_the_trace_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer, "BLOCK_BYTES", 1)
    monkeypatch.setattr(writer, "POLL_S", 0.001)
    of = header()
    made = Writer(tmp_path / "t", of, join)

    class Full:
        def write(self, data: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(made, "file", Full())
    with caplog.at_level(logging.WARNING, "headrace"):
        made.put(columns(of, 4), 4, 400)
        made.thread.join(10)
    assert "the run goes on without" in caplog.text
    made.put(columns(of, 4), 4, 400)
    assert not made.waiting
    with pytest.raises(OptionError, match="No space left on device; make room"):
        made.close()


def test_what_cannot_be_written_is_refused_before(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="it is a directory"):
        writer.check(tmp_path)
    (tmp_path / "earlier").write_bytes(b"x")
    with pytest.raises(OptionError, match="earlier: there is a file already; remove it, or name another"):
        writer.check(tmp_path / "earlier")
    assert (tmp_path / "earlier").read_bytes() == b"x"
    (tmp_path / "empty").touch()
    for free in (tmp_path / "empty", tmp_path / "new", Path("/dev/null")):
        writer.check(free)
    with pytest.raises(OptionError, match="cannot write the trace"):
        writer.check(tmp_path / "no" / "t")
    with pytest.raises(OptionError, match="cannot write the trace"):
        Writer(tmp_path / "no" / "t", header(), join)
