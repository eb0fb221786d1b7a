"""Arrays of strings in GGUF headers: half a million in a large vocabulary, and lengths that cannot be believed."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import packed
from vocabulary_metadata import texts

from headrace.errors import CheckpointError
from headrace.loaders.files import gguf_header, gguf_set
from headrace.loaders.files.gguf_header import Texts

WORDS = ["", "a", "日本", "\u2581\u2581", "x" * 3000, "\x00\n"]
TEXTS, STRINGS = struct.pack("<I", 9), 8


def array(words: list[str], version: int = 3, kind: int = STRINGS, count: int | None = None) -> bytes:
    """An array as it stands in a file; count: what is said to be its length."""
    length = "<I" if version == 1 else "<Q"
    many = [word.encode() for word in words]
    content = b"".join(struct.pack(length, len(word)) + word for word in many)
    return TEXTS + struct.pack("<I", kind) + struct.pack(length, len(words) if count is None else count) + content


def read(data: bytes, size: int | None = None) -> tuple[dict[str, Any], list[int]]:
    """Metadata, and how many bytes were asked for each time."""
    asked: list[int] = []

    def fetch(start: int, length: int) -> bytes:
        asked.append(length)
        return data[start : start + length]

    return gguf_header.read(fetch, "here", size).metadata, asked


@pytest.mark.parametrize("version", [1, 2, 3])
def test_an_array_of_texts_is_read_when_it_is_asked_for(version: int) -> None:
    pairs = [("before", 1), ("words", array(WORDS, version)), ("none", array([], version)), ("after", 7)]
    found, _ = read(packed(pairs, [], version=version))
    assert [*found["words"]] == [*found["words"]] == WORDS
    assert (len(found["words"]), [*found["none"]], found["after"]) == (len(WORDS), [], 7)
    assert repr(found["words"]) == "an array of 6 texts"


def test_texts_are_equal_by_what_they_hold() -> None:
    assert texts(WORDS) == texts(WORDS) != texts(WORDS[1:])


def test_bytes_that_are_no_text_are_marked() -> None:
    broken = Texts(struct.pack("<Q", 2) + b"\xffa" + struct.pack("<Q", 1) + b"b", 2, 8)
    assert [*broken] == ["\ufffda", "b"]


def test_a_vocabulary_that_is_fetched_in_parts_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_header, "STEP", 16)
    found, asked = read(packed([("words", array(WORDS)), ("after", 7)], []))
    assert [*found["words"]] == WORDS
    assert len(asked) > 5


def lengths_that_lie() -> list[Callable[[], bytes]]:
    """Files of a few bytes in which some length says much more."""
    huge = (1 << 20, 1 << 40, 2**64 - 1)
    words = [lambda n=n: packed([("words", array(["a"], count=n))], []) for n in huge]
    numbers = [lambda n=n: packed([("of.numbers", array([], kind=4, count=n))], []) for n in huge]
    inner = [lambda n=n: packed([("words", array([])[:-8] + struct.pack("<QQ", 1, n) + b"a")], []) for n in huge]
    return [*words, *numbers, *inner]


@pytest.mark.parametrize("file", lengths_that_lie())
def test_a_length_that_lies_takes_no_memory(tmp_path: Path, file: Callable[[], bytes]) -> None:
    path = tmp_path / "lying.gguf"
    path.write_bytes(file())
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"ends inside its header|damaged header"):
            gguf_set.of_file(path)
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()


def test_a_length_that_lies_is_not_fetched_for() -> None:
    """Where the size of a file is known, as on a hub."""
    data = packed([("of.numbers", array([], kind=4, count=50 << 20))], [])
    asked: list[int] = []

    def fetch(start: int, length: int) -> bytes:
        asked.append(length)
        return data[start : start + length]

    with pytest.raises(CheckpointError, match=f"ends inside its header, at byte {len(data)}"):
        gguf_header.read(fetch, "here", len(data))
    assert max(asked) <= gguf_header.STEP
