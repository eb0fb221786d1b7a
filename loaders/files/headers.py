"""The header of a safetensors file: which tensors it has, of what type and shape, and where their bytes lie.

The format is an 8-byte length, a JSON header and raw bytes. The reader takes any source of byte ranges, a local file or
one on a hub, and no torch: a plan needs the header alone. What is checked against the file itself stands in
`safetensors.py`, which loads.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import CheckpointError, brief, short, visible
from .. import regular
from . import recognise

Fetch = Callable[[int, int], bytes]  # start, length -> that many bytes, fewer at the end of the file

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FIRST = 256 << 10  # fetched at once: most headers are smaller
MAX_HEADER = 100_000_000
MOST_SPENT = 96 << 20  # bytes beyond its file's that a header may take in memory, by these estimates:
OF_JSON = ((b"{", 300), (b"[", 90), (b",", 40), (b":", 60))
LONGEST_NAME, LONGEST_PATH = 255, 1000  # bytes of a file's name, characters of one with its folders
MOST_BYTES, MOST_WEIGHTS, MOST_DIMENSIONS = 2**63, 2**48, 16
# Bits of an element, by the file's name for its type; of other types a shape says no bytes.
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32,
    "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """One tensor: its name, type as the file calls it, shape and bytes; `start`: where these begin behind the header.
    Two are equal wherever they lie."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    start: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Header:
    """Tensors in the order of the header, and its bytes: the first tensor begins behind them."""

    tensors: tuple[Stored, ...]
    nbytes: int


def read(fetch: Fetch, source: str, remedy: str = "download it again", size: int | None = None) -> Header:
    """The header that `fetch` gives of a file of `size` bytes (None: not known); raises CheckpointError, with the
    remedy, if there is none, or if its tensors contradict themselves or each other."""
    data = fetch(0, FIRST)
    length = int.from_bytes(data[:8], "little")
    nbytes = 8 + length
    is_possible = length <= MAX_HEADER and (size is None or nbytes <= size)
    if len(data) >= 8 and is_possible and len(data) < nbytes:
        data += fetch(len(data), nbytes - len(data))
    if (len(data) < max(8, nbytes) or data[8:9] != b"{") and (
        what := recognise.explain(data[: recognise.FIRST], source)
    ):
        raise CheckpointError(f"{source} {what}")
    if len(data) < max(8, nbytes):
        raise CheckpointError(
            f"{source} is truncated or no safetensors file (a header of {length} bytes, and {len(data)} bytes were "
            f"read): {remedy}"
        )
    tensors = tuple(_tensors(_parsed(data, nbytes, source, remedy, size), source, remedy))
    _refuse_overlap(tensors, source, remedy)
    return Header(tensors, nbytes)


def _parsed(data: bytes, nbytes: int, source: str, remedy: str, size: int | None) -> dict[str, Any]:
    """The JSON object of a header; of a header that would take far more memory than its file is large, nothing."""
    with memoryview(data) as view:
        held = (nbytes - 8) * (1 if data.isascii() else 4)
        held += sum(each * data.count(what, 8, nbytes) for what, each in OF_JSON)
        if held > MOST_SPENT + (size or nbytes):
            raise CheckpointError(f"{source} has a header of more values than any model: {remedy}")
        try:
            header = json.loads(str(view[8:nbytes], "utf-8"), object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{source} has a damaged header ({short(str(error), 120)}): {remedy}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{source} has a {type(header).__name__} for a header, not an object: {remedy}")
    return header


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; raises ValueError where a name stands twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"'{shown(twice)}' stands there twice")
    return made


def _tensors(header: dict[str, Any], source: str, remedy: str) -> Iterator[Stored]:
    for name, raw in header.items():
        if name == "__metadata__":
            continue
        tensor = _entry(name, raw)
        if tensor is None:
            raise CheckpointError(
                f"{source}: tensor '{shown(name)}' has an unreadable header entry {brief(raw)}: {remedy}"
            )
        is_known, nbytes = tensor.dtype in BITS, BITS.get(tensor.dtype, 0) * math.prod(tensor.shape) / 8
        if min(tensor.start, tensor.nbytes, *tensor.shape) < 0 or (is_known and tensor.nbytes != nbytes):
            takes = f", but {tensor.dtype} {list(tensor.shape)} takes {nbytes:.0f}" if is_known else ""
            raise CheckpointError(
                f"{source}: tensor '{shown(name)}' claims bytes {tensor.start} to {tensor.start + tensor.nbytes}{takes}"
                f": the header is wrong, {remedy}"
            )
        yield tensor


def _entry(name: str, raw: Any) -> Stored | None:
    """One tensor as the header has it; None if that is no tensor's entry."""
    if not isinstance(raw, dict) or not isinstance(raw.get("dtype"), str):
        return None
    shape, place = _sizes(raw.get("shape")), _sizes(raw.get("data_offsets"))
    if shape is None or place is None or len(place) != 2 or math.prod(shape) > MOST_WEIGHTS:
        return None
    return Stored(name, raw["dtype"], tuple(shape), place[1] - place[0], place[0])


def _sizes(values: Any) -> list[int] | None:
    """A short list of whole numbers; None for anything else."""
    if not isinstance(values, list) or len(values) > MOST_DIMENSIONS:
        return None
    return values if all(type(n) is int and abs(n) < MOST_BYTES for n in values) else None


def _refuse_overlap(tensors: Iterable[Stored], source: str, remedy: str) -> None:
    """Raises CheckpointError if a tensor lies over another."""
    end, last = 0, ""
    for tensor in sorted(tensors, key=lambda t: (t.start, t.nbytes)):
        if tensor.start < end:
            raise CheckpointError(f"{source}: tensors '{shown(last)}' and '{shown(tensor.name)}' overlap: {remedy}")
        end, last = tensor.start + tensor.nbytes, tensor.name


def shown(name: str) -> str:
    """A name of any length and content in a message."""
    return short(visible(short(name, 200)), 80)


def fetching(file: BinaryIO) -> Fetch:
    """Byte ranges of an open file."""

    def fetch(start: int, length: int) -> bytes:
        file.seek(start)
        return file.read(length)

    return fetch


def of_file(path: Path, remedy: str = "download it again") -> Header:
    """The header of one safetensors file; raises CheckpointError, which ends with the remedy, if it cannot be read."""
    try:
        with regular.opened(path) as file:
            return read(fetching(file), str(path), remedy, path.stat().st_size)
    except OSError as error:
        raise CheckpointError(f"{path} {recognise.what_is(path) or f'cannot be read: {error.strerror}'}") from error


def read_index(index: Path) -> dict[str, str]:
    """An index's map from tensor to shard, a path from the index; raises CheckpointError if it is damaged."""
    try:
        where = json.loads(regular.text(index))["weight_map"]
        wrong = [shard for shard in where.values() if not isinstance(shard, str) or not _is_below(shard)]
    except OSError as error:
        raise CheckpointError(f"cannot read {index}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is damaged ({error!r}): download it again") from error
    if wrong:
        raise CheckpointError(f"{index} names {brief(wrong[0])} where a file beside it is needed: download it again")
    if not where:
        raise CheckpointError(f"{index} names no files: download it again")
    return dict(where)


def _is_below(name: str) -> bool:
    """Whether a name leads to a file of the same folder, or of one in it, and a disk can have it."""
    path = Path(name)
    if not path.name or path.is_absolute() or ".." in path.parts or "\0" in name or len(name) > LONGEST_PATH:
        return False
    try:
        return all(len(os.fsencode(part)) <= LONGEST_NAME for part in path.parts)
    except UnicodeEncodeError:
        return False
