"""Reads a trace into arrays, as far as it is whole: a file that was cut off or damaged is read up to there, and says
so."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import OptionError, brief
from ...loaders.memory import require_memory
from .layout import (
    BLOCK,
    DONE,
    LENGTH,
    LOST,
    MAGIC,
    MOST_HEADER,
    MOST_INFLATED,
    TOKENS,
    Columns,
    Header,
    unpack,
    unpacked_bytes,
)  # fmt: skip

MOST_NUMBER = 1 << 62


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What was recorded: T tokens in the order in which they ran, L layers with experts, K experts a token.

    passes, sequences, positions: uint32 [T], the number of the pass that a token was part of, of its sequence, and of
    its place there. generated: bool [T], fed back by decode steps, not part of a prompt. choices: uint16 [L, T, K], an
    expert and its weight in one number. lost: tokens that the writer had to leave out, somewhere among the others.
    damage: why the file was not read to its end; "": it was.
    """

    header: Header
    passes: NDArray[np.uint32]
    sequences: NDArray[np.uint32]
    positions: NDArray[np.uint32]
    generated: NDArray[np.bool_]
    choices: NDArray[np.uint16]
    lost: int
    damage: str

    def __len__(self) -> int:
        return len(self.passes)

    @property
    def ids(self) -> NDArray[np.int16]:
        """Experts, int16 [L, T, K], in falling order of the choice; -1 where a token did not go through the layer."""
        ids = (self.choices & ((1 << self.header.id_bits) - 1)).astype(np.int16)
        ids[ids == self.header.none] = -1
        return ids

    @property
    def weights(self) -> NDArray[np.float32]:
        """Their weights, float32 [L, T, K]; 0 where there is no expert. Rounded to steps of `header.most_weight` /
        `header.steps`."""
        scale = np.float32(self.header.most_weight / self.header.steps)
        found: NDArray[np.float32] = (self.choices >> self.header.id_bits).astype(np.float32) * scale
        return found


def read(path: Path) -> Trace:
    """Reads a trace. Raises OptionError for a file that is none, or cannot be read; MemoryNeeded for one that holds
    more than there is room for."""
    with _opened(path) as file:
        return _read(file, path)


def glance(path: Path) -> tuple[Header, int | None]:
    """The header of a trace, and how many tokens it has; None: it has no end. Raises as `read` does."""
    with _opened(path) as file:
        header = _header(file, path)
        file.seek(-BLOCK.size, os.SEEK_END)  # a header alone is longer
        kind, tokens, *_ = BLOCK.unpack(file.read())
    return header, tokens if kind == DONE else None


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Raises OptionError where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            yield file
    except OSError as error:
        raise OptionError(f"cannot read the trace {path}: {error.strerror}") from error


def _read(file: IO[bytes], path: Path) -> Trace:
    header, found, lost = _header(file, path), [], 0
    _check_memory(file, path, header)
    while True:
        kind, tokens, damage, columns = _block(file, header)
        if kind == TOKENS and columns is not None:
            found.append(columns)
        elif kind == LOST:
            lost += tokens
        else:
            break
    if kind == DONE and tokens != sum(len(one.passes) for one in found):
        damage = f"its end counts {tokens} tokens"
    return _joined(header, found, lost, damage)


def _check_memory(file: IO[bytes], path: Path, header: Header) -> None:
    """Raises MemoryNeeded, before any is taken, where blocks hold more than is free: some kilobytes of zlib are
    megabytes."""
    begin, tokens = file.tell(), 0
    while len(start := file.read(BLOCK.size)) == BLOCK.size:
        kind, count, _, size, _ = BLOCK.unpack(start)
        if size > _left(file) or (kind == TOKENS and unpacked_bytes(header, count) > size * MOST_INFLATED):
            break  # it is read up to here
        tokens += count if kind == TOKENS else 0
        file.seek(size, os.SEEK_CUR)
    file.seek(begin)
    needs = {f"the {tokens} tokens of {path}": 2 * unpacked_bytes(header, tokens)}  # by blocks, and joined
    require_memory(needs, "record fewer tokens, or free memory")


def _left(file: IO[bytes]) -> int:
    """Bytes to the end of the file."""
    return os.fstat(file.fileno()).st_size - file.tell()


def _header(file: IO[bytes], path: Path) -> Header:
    """Raises OptionError for another kind of file."""
    start = file.read(len(MAGIC) + LENGTH.size)
    size = LENGTH.unpack(start[len(MAGIC) :])[0] if len(start) == len(MAGIC) + LENGTH.size else 0
    if not start.startswith(MAGIC) or not 0 < size <= MOST_HEADER:
        raise OptionError(f"{path} is no trace of headrace; give a file that --trace wrote")
    try:
        values: dict[str, Any] = json.loads(file.read(size))
        header = Header(**{one.name: values[one.name] for one in fields(Header)})
        whole = (header.experts, header.top_k, *header.layers, *header.expert_bytes)
        is_sane = all(type(one) is int and one < MOST_NUMBER for one in whole)
        is_sane = is_sane and 0 < header.experts < 1 << 15 and 0 < header.top_k <= header.experts
        is_sane = is_sane and 0 < header.most_weight < MOST_NUMBER and header.layers == sorted({*header.layers})
        is_sane = is_sane and len(header.expert_bytes) == len(header.layers) and min(header.expert_bytes, default=1) > 0
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise OptionError(f"{path}: the trace's header cannot be read ({error!r:.100}); record it again") from error
    if not is_sane:
        what = f"{brief(header.experts)} experts, {brief(header.top_k)} a token"
        raise OptionError(f"{path}: the trace's header cannot be right ({what}); record it again")
    return header


def _block(file: IO[bytes], header: Header) -> tuple[bytes, int, str, Columns | None]:
    """The next block: its kind, its tokens, what is wrong with it, and what it holds."""
    start = file.read(BLOCK.size)
    if len(start) < BLOCK.size:
        return b"", 0, "it ends without an end: whoever wrote it was stopped", None
    kind, tokens, _, size, check = BLOCK.unpack(start)
    if kind in (LOST, DONE):
        return kind, tokens, "", None
    if kind != TOKENS:
        return b"", 0, "a block of an unknown kind follows", None
    packed = file.read(size) if size <= _left(file) else b""
    if len(packed) < size:
        return b"", 0, "it ends within a block: whoever wrote it was stopped, or it was cut off", None
    if zlib.crc32(packed) != check:
        return b"", 0, "a block is damaged: its checksum is another", None
    try:
        return kind, tokens, "", unpack(header, tokens, packed)
    except ValueError as error:
        return b"", 0, f"a block is damaged: {error}", None


def _joined(header: Header, found: list[Columns], lost: int, damage: str) -> Trace:
    """All blocks as one."""
    empty = np.zeros(0, np.uint32)
    flat = [np.concatenate([empty, *(one[i] for one in found)]).astype(np.uint32) for i in range(4)]
    none = np.zeros((len(header.layers), 0, header.top_k), np.uint16)
    choices = np.concatenate([none, *(one.choices for one in found)], axis=1).astype(np.uint16)
    return Trace(
        header=header, passes=flat[0], sequences=flat[1], positions=flat[2], generated=flat[3].astype(np.bool_),
        choices=choices, lost=lost, damage=damage,
    )  # fmt: skip
