"""All parts of a GGUF model from any one of them.

A split model is several files, each with `split.no` and `split.count`; metadata and vocabulary stand in the first. They
are called NAME-00001-of-00003.gguf; where somebody renamed them, the numbers inside are believed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from ...errors import CheckpointError, brief, listed
from .. import regular
from . import headers
from .gguf_header import Header, read, refuse_twice

SUFFIX = ".gguf"
PART = re.compile(r"(?i)(.*)-(\d{5})-of-(\d{5})\.gguf$")
ReadAll = Callable[[Sequence[str]], list[Header]]


def is_gguf(path: Path) -> bool:
    """Whether a file is called so, or begins so under another name (ollama's blobs)."""
    if path.suffix.lower() == SUFFIX:
        return True
    try:
        with regular.opened(path) as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def of_file(path: Path) -> Header:
    """The header of one local file."""
    try:
        with regular.opened(path) as file:
            return read(headers.fetching(file), str(path), path.stat().st_size)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}: check its place and permissions") from error


def of_path(path: Path) -> Header:
    """The model that a local file is, or is a part of."""
    return whole(path.name, _beside(path), lambda names: [of_file(path.with_name(name)) for name in names], str(path))


def files_of(path: Path) -> dict[Path, Header]:
    """The files of the model that a local file is, or is a part of, each with its own header."""
    read: dict[Path, Header] = {}

    def read_all(names: Sequence[str]) -> list[Header]:
        for at in (path.with_name(name) for name in names):
            read.setdefault(at, of_file(at))
        return [read[path.with_name(name)] for name in names]

    model = whole(path.name, _beside(path), read_all, str(path))
    return {at: header for at, header in read.items() if set(header.tensors) <= set(model.tensors)}


def _beside(path: Path) -> list[str]:
    """The GGUF files in a file's folder."""
    return [p.name for p in path.parent.iterdir() if p.suffix.lower() == SUFFIX and p.exists()]


def whole(name: str, beside: Collection[str], read_all: ReadAll, source: str) -> Header:
    """Metadata of the first part and the tensors of all; `beside`: the names of GGUF files in the same folder. Raises
    CheckpointError if a part is missing, by name."""
    (header,) = read_all([name])
    count = _number(header, "split.count", source)
    if count <= 1:
        return header
    parts = _by_name(name, count, beside, read_all, source) or _by_number(header, count, beside, read_all, source)
    tensors = [tensor for part in parts for tensor in part.tensors]
    refuse_twice(tensors, source)
    wanted = _number(header, "split.tensors.count", source)
    if wanted and wanted != len(tensors):
        raise CheckpointError(
            f"{source}: its {count} parts have {len(tensors)} tensors, {wanted} belong to the model: the parts are not "
            "of one model; download them again"
        )
    return Header(parts[0].metadata, tuple(tensors), parts[0].nbytes)


def _by_name(name: str, count: int, beside: Collection[str], read_all: ReadAll, source: str) -> list[Header] | None:
    """The parts by their usual names; None where they are called otherwise."""
    match = PART.fullmatch(name)
    if not match or int(match[3]) != count:
        return None
    names = part_names(match[1], count)
    missing = [part for part in names if part not in beside]
    if missing:
        raise CheckpointError(
            f"{source} is one of {count} parts, and {listed(missing, 3)} {'is' if len(missing) == 1 else 'are'} not "
            "beside it: download every part"
        )
    parts = read_all(names)
    agree = all(part.metadata.get("split.no", number) == number for number, part in enumerate(parts))
    return parts if agree else None


def _by_number(header: Header, count: int, beside: Collection[str], read_all: ReadAll, source: str) -> list[Header]:
    """The parts by the numbers in them, of all GGUF files in the folder that are split alike."""
    wanted = (count, header.metadata.get("split.tensors.count"))
    found: dict[int, list[Header]] = {}
    for part in read_all(sorted(beside)):
        if (part.metadata.get("split.count"), part.metadata.get("split.tensors.count")) == wanted:
            found.setdefault(_number(part, "split.no", source), []).append(part)
    missing = [f"{number + 1}" for number in range(count) if number not in found]
    if missing:
        raise CheckpointError(
            f"{source} is one of {count} parts, and no file beside it is part {listed(missing, 3)}: download every part"
        )
    if twice := [f"{number + 1}" for number, parts in sorted(found.items()) if len(parts) > 1]:
        raise CheckpointError(
            f"{source} is one of {count} parts, and several files beside it are part {listed(twice, 3)}: give them "
            "their names back (NAME-00001-of-00002.gguf), or move other models away"
        )
    return [found[number][0] for number in range(count)]


def _number(header: Header, key: str, source: str) -> int:
    value = header.metadata.get(key, 0)
    if not isinstance(value, int) or not 0 <= value < (2**31 if key == "split.tensors.count" else 2**16):
        raise CheckpointError(f"{source} has a damaged header: {key} is {brief(value)}")
    return value


def part_names(stem: str, count: int) -> list[str]:
    """The names of all parts of a split file."""
    return [f"{stem}-{i:05d}-of-{count:05d}{SUFFIX}" for i in range(1, count + 1)]
