"""Reads safetensors files: the header first, then any run of rows of a tensor straight into a buffer.

The library of the same name maps whole files, which counts against resident memory, gives no row ranges of a file on
the network, and reports damage without naming the tensor. The format is an 8-byte length, a JSON header and raw bytes,
so it is read here with `preadv`. Every offset is checked against the shape, the dtype and the size of the file before
use. This file knows no model and no packed format.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 100_000_000
ALIGN = 64
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: where its bytes start in the file, and how many there are."""

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row: of the last dimension."""
        return self.shape[-1] * self.dtype.itemsize if self.shape else self.dtype.itemsize


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of one file by name; raises CheckpointError if the header and the file do not agree."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise CheckpointError(f"{path} is truncated or no safetensors file ({size} bytes): download it again")
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged header ({error}): download it again") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} has a {type(header).__name__} for a header, not an object: download it again")
    data = 8 + length
    entries = {n: _entry(n, e, path, data) for n, e in header.items() if n != "__metadata__"}
    _check_extents(entries.values(), path, data, size)
    return entries


def _entry(name: str, raw: Any, path: Path, data: int) -> Entry:
    try:
        dtype, shape = DTYPES[raw["dtype"]], tuple(int(n) for n in raw["shape"])
        start, stop = (int(n) for n in raw["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: tensor '{name}' has an unreadable header entry {raw!r}: download the file again; "
            f"types that can be read are {', '.join(DTYPES)}"
        ) from error
    nbytes = math.prod(shape) * dtype.itemsize
    if stop - start != nbytes or start < 0 or min(shape, default=0) < 0:
        raise CheckpointError(
            f"{path}: tensor '{name}' claims bytes {start} to {stop}, but {raw['dtype']} {list(shape)} takes {nbytes}: "
            "the header is wrong, download the file again"
        )
    return Entry(name, path, dtype, shape, data + start, nbytes)


def _check_extents(entries: Iterable[Entry], path: Path, data: int, size: int) -> None:
    """Tensors must lie inside the file, one after the other, none over another."""
    end, last = data, "the header"
    for entry in sorted(entries, key=lambda e: (e.offset, e.nbytes)):
        if entry.offset < end:
            raise CheckpointError(f"{path}: tensors '{last}' and '{entry.name}' overlap: download it again")
        end, last = entry.offset + entry.nbytes, entry.name
    if end > size:
        raise CheckpointError(
            f"{path} is truncated: it has {size} bytes, tensor '{last}' ends at {end}; download it again"
        )


def read_rows(entry: Entry, first: int, rows: int) -> Tensor:
    """Rows [first, first + rows) of a tensor seen as [everything else, last dimension]: [rows, last], freshly read."""
    buffer = torch.empty(rows * entry.row_bytes, dtype=torch.uint8)
    read_into(entry, first * entry.row_bytes, buffer)
    return buffer.view(entry.dtype).view(rows, -1)


def read_into(entry: Entry, start: int, buffer: Tensor) -> None:
    """Fills a uint8 buffer with the tensor's bytes from `start` on."""
    view = buffer.numpy().data.cast("B")
    fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        done = 0
        while done < len(view):
            got = os.preadv(fd, [view[done:]], entry.offset + start + done)
            if got == 0:
                raise CheckpointError(
                    f"{entry.path} ended inside tensor '{entry.name}': was it replaced while loading?"
                )
            done += got
    except OSError as error:
        raise CheckpointError(f"cannot read {entry.path}: {error.strerror}") from error
    finally:
        os.close(fd)


def open_checkpoint(directory: Path) -> dict[str, Entry]:
    """Every tensor of a checkpoint by name: from the shards of its index, else from model.safetensors."""
    index = directory / INDEX
    if index.is_file():
        return _open_shards(directory, index)
    if (directory / SINGLE).is_file():
        return read_header(directory / SINGLE)
    there = sorted({p.suffix for p in directory.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".gguf"}})
    also = f" (there are {', '.join(there)} files, which are not read)" if there else ""
    raise CheckpointError(f"{directory} has neither {INDEX} nor {SINGLE}{also}: get the safetensors version")


def _open_shards(directory: Path, index: Path) -> dict[str, Entry]:
    where = _read_index(index)
    shards = sorted(set(where.values()))
    missing = [s for s in shards if not (directory / s).is_file()]
    if missing:
        raise CheckpointError(
            f"{directory} misses {len(missing)} of {len(shards)} shards that its index names, first {missing[0]}: "
            "finish the download"
        )
    entries: dict[str, Entry] = {}
    for shard in shards:
        found = read_header(directory / shard)
        absent = sorted(name for name, place in where.items() if place == shard and name not in found)
        if absent:
            raise CheckpointError(
                f"{directory / shard} has no tensor '{absent[0]}', which {index.name} puts there "
                f"({len(absent)} in all): shards and index are of different versions, download both again"
            )
        # A tensor that lies in two shards is taken from where the index says.
        entries.update({name: entry for name, entry in found.items() if where.get(name, shard) == shard})
    return entries


def _read_index(index: Path) -> dict[str, str]:
    """The index's map from tensor to shard, each a plain file name."""
    try:
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        wrong = [s for s in where.values() if not isinstance(s, str) or Path(s).name != s]
    except OSError as error:
        raise CheckpointError(f"cannot read {index}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is damaged ({error!r}): download it again") from error
    if wrong:
        raise CheckpointError(f"{index} names {wrong[0]!r} where a file beside it is needed: download it again")
    return dict(where)


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes tensors one after the other; no copy is made in memory. Those of a multiple of 64 bytes come first, so
    that they start on 64-byte boundaries (the format allows no gaps)."""
    tensors = dict(sorted(tensors.items(), key=lambda item: item[1].nbytes % ALIGN != 0))
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    blob = json.dumps(header).encode()
    blob += b" " * (-(len(blob) + 8) % ALIGN)
    with path.open("wb") as file:
        file.write(len(blob).to_bytes(8, "little") + blob)
        for tensor in tensors.values():
            file.write(tensor.contiguous().view(torch.uint8).view(-1).numpy().data)
