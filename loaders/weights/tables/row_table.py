"""A table in the files of a checkpoint, of which single rows are read: by a memory map, so that what is asked for again
comes from the system's cache of files, and nothing is taken for good."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ....errors import CheckpointError
from ... import regular
from ...files.entry import Entry
from ...spec import ModelSpec

TABLE = "ple_embedding.ngram_embedding."
PART = re.compile(r"(?:shard_(\d+)\.)?weight")
PLAIN = (torch.float32, torch.float16, torch.bfloat16)


class RowTable:
    """One table of a model, in one tensor or in parts one below the other."""

    def __init__(self, entries: Collection[Entry]) -> None:
        self.parts = [_mapped(entry) for entry in entries]
        self.dtypes = [entry.dtype for entry in entries]
        self.firsts = np.cumsum([0, *(len(part) for part in self.parts)])
        self.row_bytes = next(iter(entries)).row_bytes

    def rows(self, numbers_N: Tensor) -> Tensor:
        """float32 [N, numbers of a row] of these rows, int64."""
        wanted = numbers_N.numpy()
        owners = np.searchsorted(self.firsts, wanted, side="right") - 1
        found = torch.empty(len(wanted), self.row_bytes // self.dtypes[0].itemsize)
        for part in np.unique(owners):
            mine = owners == part
            data = torch.from_numpy(self.parts[part][wanted[mine] - self.firsts[part]])
            found[torch.from_numpy(mine)] = data.view(self.dtypes[part]).float()
        return found


def _mapped(entry: Entry) -> np.memmap:
    """uint8 [rows, bytes of one], in the file."""
    shape = entry.shape[0], entry.row_bytes
    try:
        with regular.opened(entry.path) as file:
            return np.memmap(file, dtype=np.uint8, mode="r", offset=entry.offset, shape=shape)
    except OSError as error:
        raise CheckpointError(f"cannot read {entry.path}: {error.strerror}") from error


def names(stored: Collection[str], start: str) -> list[str]:
    """Those of the parts of a table, in order. start: of the names of its layer."""
    found = {
        name: PART.fullmatch(name.removeprefix(start + TABLE)) for name in stored if name.startswith(start + TABLE)
    }
    return [name for name, _ in sorted(((n, int(m[1] or 0)) for n, m in found.items() if m), key=lambda one: one[1])]


def find(
    directory: Path, entries: Mapping[str, Entry], spec: ModelSpec, layer: str, start: str
) -> dict[int, list[str]]:
    """By layer the names of its table's parts. layer, start: how names of layers, and of tables within, begin. Raises
    CheckpointError where a table is missing, or not what the config says."""
    found = {}
    for i, one in enumerate(spec.layers):
        if one.grams is None:
            continue
        parts = names(entries, layer.format(layer=i) + start)
        rows, wanted = sum(entries[name].shape[0] for name in parts), (one.grams.rows, one.grams.row)
        if not parts or (rows, entries[parts[0]].shape[-1]) != wanted:
            raise CheckpointError(
                f"{directory} has {rows} rows of the table of runs of tokens in layer {i}, the config asks for "
                f"{wanted[0]} of {wanted[1]} numbers: config and weights do not belong together"
            )
        if any(entries[name].dtype not in PLAIN or entries[name].blocks for name in parts):
            raise CheckpointError(f"{directory}: the table of runs of tokens in layer {i} is not F32, F16 or BF16")
        found[i] = parts
    return found
