"""Where the tensors of a GGUF model lie: `Entry` by name, over all of its files. Every extent is checked against the
size of its file before use."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from ...errors import CheckpointError
from ..files.entry import Entry
from ..files.gguf_header import Header
from ..files.headers import Stored
from ..gguf.runnable import READABLE

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32}


def read(files: Mapping[Path, Header]) -> dict[str, Entry]:
    """The tensors of all files by name; raises CheckpointError for a type that no kernel knows, by name, and for
    extents that do not fit the file."""
    entries: dict[str, Entry] = {}
    for path, header in files.items():
        own = [_entry(tensor, path, header.data) for tensor in header.tensors]
        _check_extents(own, path, header.data)
        entries.update({entry.name: entry for entry in own})
    return entries


def _entry(tensor: Stored, path: Path, data: int) -> Entry:
    kind = tensor.dtype
    if kind in PLAIN:
        return Entry(tensor.name, path, PLAIN[kind], tensor.shape, data + tensor.start, tensor.nbytes)
    if kind not in READABLE:
        raise CheckpointError(
            f"{path}: tensor '{tensor.name}' is {kind}, which cannot be computed with yet; there are kernels for "
            f"{', '.join(READABLE)}: get the model in one of these"
        )
    return Entry(tensor.name, path, torch.uint8, tensor.shape, data + tensor.start, tensor.nbytes, kind.lower())


def _check_extents(entries: Iterable[Entry], path: Path, data: int) -> None:
    """Tensors must lie inside the file, one after the other, none over another."""
    size, end, last = path.stat().st_size, data, "the header"
    for entry in sorted(entries, key=lambda e: (e.offset, e.nbytes)):
        rows = math.prod(entry.shape[:-1])
        if entry.nbytes != rows * entry.row_bytes:
            raise CheckpointError(f"{path}: tensor '{entry.name}' has a damaged shape: download the file again")
        if entry.offset < end:
            raise CheckpointError(f"{path}: tensors '{last}' and '{entry.name}' overlap: download the file again")
        end, last = entry.offset + entry.nbytes, entry.name
    if end > size:
        raise CheckpointError(
            f"{path} is truncated: it has {size} bytes, tensor '{last}' ends at {end}; download it again"
        )
