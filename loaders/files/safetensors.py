"""Loads from safetensors files: any run of rows of a tensor straight into a buffer.

The library of the same name maps whole files, which counts against resident memory, gives no row ranges of a file on
the network, and reports damage without naming the tensor. The format is plain, so it is read here with `preadv`. Every
offset of the header is checked against shape and dtype (`headers.py`) and the size of the file before use. This
file knows no model and no packed format.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from .. import regular
from . import headers, recognise
from .entry import Entry
from .headers import Stored, shown
from .weight_files import WeightSet, several

ALIGN, PAGE = 64, 4096
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_header(path: Path, remedy: str = "download it again") -> dict[str, Entry]:
    """The tensors of one file by name; raises CheckpointError, which ends with the remedy, if the header and the file
    do not agree."""
    header = headers.of_file(path, remedy)
    entries = {tensor.name: _entry(tensor, path, header.nbytes) for tensor in header.tensors}
    _check_end(entries.values(), path, remedy)
    return entries


def _entry(tensor: Stored, path: Path, data: int) -> Entry:
    if tensor.dtype not in DTYPES:
        raise CheckpointError(
            f"{path}: tensor '{shown(tensor.name)}' is of type {shown(tensor.dtype)}: download the file again; types "
            f"that can be read are {', '.join(DTYPES)}"
        )
    dtype = DTYPES[tensor.dtype]
    return Entry(tensor.name, path, dtype, tensor.shape, data + tensor.start, tensor.nbytes)


def _check_end(entries: Collection[Entry], path: Path, remedy: str) -> None:
    """Every tensor must lie inside the file."""
    size, last = path.stat().st_size, max(entries, key=lambda e: e.offset + e.nbytes, default=None)
    if last is not None and last.offset + last.nbytes > size:
        raise CheckpointError(
            f"{path} is truncated: it has {size} bytes, tensor '{shown(last.name)}' ends at "
            f"{last.offset + last.nbytes}; {_begun(path) or remedy}"
        )


def _begun(path: Path) -> str | None:
    """What the folder shows of a file that is too short."""
    what = recognise.what_is(path)
    return None if what is None else f"it {what}"


ReadInto = Callable[[Entry, int, Tensor], None]  # of a tensor the bytes from one on, into a uint8 buffer


def read_rows(entry: Entry, first: int, rows: int, read: ReadInto | None = None) -> Tensor:
    """Rows [first, first + rows) of a tensor seen as [everything else, last dimension]: [rows, last], freshly read;
    blocks as their bytes, uint8 [rows, row_bytes]. read: how bytes come; None: `read_into`."""
    buffer = torch.empty(rows * entry.row_bytes, dtype=torch.uint8)
    (read or read_into)(entry, first * entry.row_bytes, buffer)
    return buffer.view(entry.dtype).view(rows, -1)


def read_into(entry: Entry, start: int, buffer: Tensor) -> None:
    """Fills a uint8 buffer with the tensor's bytes from `start` on."""
    view = buffer.numpy().data.cast("B")
    fd = regular.descriptor(entry.path)
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


def read_set(directory: Path, files: WeightSet) -> dict[str, Entry]:
    """Every tensor of a set of files by name. One that lies in two files is taken from where an index says; raises
    CheckpointError where none does."""
    entries: dict[str, Entry] = {}
    for file in files.files:
        for name, entry in read_header(directory / file).items():
            if name in entries and not files.where:
                raise several(directory, [files])
            if name not in entries or files.where.get(name) == file:
                entries[name] = entry
    return entries


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes tensors one after the other; no copy is made in memory. Those of whole pages come first, then those of a
    multiple of 64 bytes, so that they start on a page, or on a 64-byte boundary (the format allows no gaps)."""
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].nbytes % PAGE != 0, item[1].nbytes % ALIGN != 0)))
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
    blob += b" " * (-(len(blob) + 8) % PAGE)
    with path.open("wb") as file:
        file.write(len(blob).to_bytes(8, "little") + blob)
        for tensor in tensors.values():
            file.write(tensor.contiguous().view(torch.uint8).view(-1).numpy().data)
