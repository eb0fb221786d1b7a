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
from ....kernels import FORMATS, blocks
from ....kernels.blocks.ggml import FILE_BLOCKS
from ... import regular
from ...families.family import TensorNames
from ...files.entry import Entry
from ...spec import ModelSpec

PART = re.compile(r"(?:shard_(\d+)\.)?weight")
PLAIN = (torch.float32, torch.float16, torch.bfloat16)


class RowTable:
    """One table of a model, in one tensor or in parts one below the other, in a plain type or in blocks as GGUF files
    have them."""

    def __init__(self, entries: Collection[Entry]) -> None:
        self.parts = [_mapped(entry) for entry in entries]
        self.kinds = [entry.blocks or entry.dtype for entry in entries]
        self.firsts = np.cumsum([0, *(len(part) for part in self.parts)])
        first = next(iter(entries))
        self.row_bytes, self.cols = first.row_bytes, first.shape[-1]

    def rows(self, numbers_N: Tensor) -> Tensor:
        """float32 [N, numbers of a row] of these rows, int64."""
        wanted = numbers_N.numpy()
        owners = np.searchsorted(self.firsts, wanted, side="right") - 1
        found = torch.empty(len(wanted), self.cols)
        for part in np.unique(owners):
            mine = owners == part
            data = torch.from_numpy(self.parts[part][wanted[mine] - self.firsts[part]])
            found[torch.from_numpy(mine)] = self._values(data, self.kinds[part])
        return found

    def _values(self, data_NB: Tensor, kind: torch.dtype | str) -> Tensor:
        """Rows as they are stored, uint8 [N, bytes of one], as numbers."""
        if isinstance(kind, torch.dtype):
            return data_NB.view(kind).float()
        file = FILE_BLOCKS[kind]
        data = data_NB.reshape(len(data_NB), self.cols // file.weights, file.bytes)
        return blocks.weights(file.read(data, FORMATS[kind]))


def _mapped(entry: Entry) -> np.memmap:
    """uint8 [rows, bytes of one], in the file."""
    shape = entry.shape[0], entry.row_bytes
    try:
        with regular.opened(entry.path) as file:
            return np.memmap(file, dtype=np.uint8, mode="r", offset=entry.offset, shape=shape)
    except OSError as error:
        raise CheckpointError(f"cannot read {entry.path}: {error.strerror}") from error


def names(stored: Collection[str], start: str) -> list[str]:
    """Those of the parts of a table, in order. start: of their names."""
    found = {name: PART.fullmatch(name.removeprefix(start)) for name in stored if name.startswith(start)}
    return [name for name, _ in sorted(((n, int(m[1] or 0)) for n, m in found.items() if m), key=lambda one: one[1])]


def find(directory: Path, entries: Mapping[str, Entry], spec: ModelSpec, own: TensorNames) -> dict[int, list[str]]:
    """By layer the names of its table's parts. Raises CheckpointError where a table is missing, or not what the config
    says."""
    found = {}
    for i, one in enumerate(spec.layers):
        if one.grams is None:
            continue
        parts = names(entries, own.layer.format(layer=i) + own.grams.table)
        if own.grams.whole is not None:
            parts = [own.grams.whole] if own.grams.whole in entries else []
        rows, wanted = sum(entries[name].shape[0] for name in parts), (one.grams.rows, one.grams.row)
        if not parts or (rows, entries[parts[0]].shape[-1]) != wanted:
            raise CheckpointError(
                f"{directory} has {rows} rows of the table of runs of tokens in layer {i}, the config asks for "
                f"{wanted[0]} of {wanted[1]} numbers: config and weights do not belong together"
            )
        if any(not _is_readable(entries[name]) for name in parts):
            raise CheckpointError(
                f"{directory}: the table of runs of tokens in layer {i} is not F32, F16, BF16 or in blocks of GGUF"
            )
        found[i] = parts
    return found


def _is_readable(entry: Entry) -> bool:
    """Whether single rows can be read where they lie."""
    return entry.packed is None and (bool(entry.blocks) or entry.dtype in PLAIN)
