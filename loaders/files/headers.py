"""The header of a safetensors file: which tensors it has, of what type and shape, and where their bytes lie.

The format is an 8-byte length, a JSON header and raw bytes. The reader takes any source of byte ranges, a local file or
one on a hub, and no torch: a plan needs the header alone. What is checked against the file itself stands in
`safetensors.py`, which loads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import CheckpointError, brief
from . import recognise

Fetch = Callable[[int, int], bytes]  # start, length -> that many bytes, fewer at the end of the file

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FIRST = 256 << 10  # fetched at once: most headers are smaller
MAX_HEADER = 100_000_000


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


def read(fetch: Fetch, source: str, remedy: str = "download it again") -> Header:
    """The header that `fetch` gives; raises CheckpointError, which ends with the remedy, if there is none."""
    data = fetch(0, FIRST)
    length = int.from_bytes(data[:8], "little")
    nbytes = 8 + length
    if len(data) >= 8 and length <= MAX_HEADER and len(data) < nbytes:
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
    try:
        header = json.loads(data[8:nbytes])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source} has a damaged header ({error}): {remedy}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{source} has a {type(header).__name__} for a header, not an object: {remedy}")
    return Header(tuple(_tensors(header, source, remedy)), nbytes)


def _tensors(header: dict[str, Any], source: str, remedy: str) -> Iterator[Stored]:
    for name, raw in header.items():
        if name == "__metadata__":
            continue
        try:
            start, stop = (int(n) for n in raw["data_offsets"])
            yield Stored(name, str(raw["dtype"]), tuple(int(n) for n in raw["shape"]), stop - start, start)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{source}: tensor '{name}' has an unreadable header entry {brief(raw)}: {remedy}"
            ) from error


def fetching(file: BinaryIO) -> Fetch:
    """Byte ranges of an open file."""

    def fetch(start: int, length: int) -> bytes:
        file.seek(start)
        return file.read(length)

    return fetch


def of_file(path: Path, remedy: str = "download it again") -> Header:
    """The header of one safetensors file; raises CheckpointError, which ends with the remedy, if it cannot be read."""
    try:
        with path.open("rb") as file:
            return read(fetching(file), str(path), remedy)
    except OSError as error:
        raise CheckpointError(f"{path} {recognise.what_is(path) or f'cannot be read: {error.strerror}'}") from error


def read_index(index: Path) -> dict[str, str]:
    """An index's map from tensor to shard, a path from the index; raises CheckpointError if it is damaged."""
    try:
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        wrong = [shard for shard in where.values() if not isinstance(shard, str) or not _is_below(Path(shard))]
    except OSError as error:
        raise CheckpointError(f"cannot read {index}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is damaged ({error!r}): download it again") from error
    if wrong:
        raise CheckpointError(f"{index} names {brief(wrong[0])} where a file beside it is needed: download it again")
    if not where:
        raise CheckpointError(f"{index} names no files: download it again")
    return dict(where)


def _is_below(path: Path) -> bool:
    """Whether a path leads to a file of the same folder, or of one in it."""
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts
