"""Where each expert lies in a checkpoint's files, and what fills its block: of any kind that loading knows.

The tasks are those of loading (`checkpoint.py`), each with a place within the block of an expert in place of one in a
bank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ....kernels import ExpertLayout, Format
from ....kernels.packed import ExpertBank, Matrix
from ...files.entry import Entry
from ...spec import MoeSpec
from .. import converted
from ..checkpoint import Checkpoint, Task
from ..mixers.target import Piece
from ..targets import of_bank


class Part(NamedTuple):
    """A matrix of an expert: what it is read from, and where in the expert's block it lies."""

    entry: Entry
    first: int
    column: int | None
    step: int
    place: int
    format: Format
    rows: int
    cols: int
    nbytes: int

    def task(self, block: Tensor) -> Task:
        """What fills it in a block, uint8 [layout.bytes]."""
        data = block[self.place : self.place + self.nbytes].view(self.rows, -1)
        return Task(self.entry, self.first, Matrix(self.format, self.rows, self.cols, data), self.column, self.step)


class StoredExperts:
    """Of a checkpoint; layers count over those with experts."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        spec, formats = checkpoint.spec, checkpoint.formats
        self.top_k = spec.moe.top_k
        self.layers = [i for i, is_moe in enumerate(spec.is_moe) if is_moe]
        self.layouts: list[ExpertLayout] = [formats.layout(spec, i) for i in self.layers]
        self.experts = [ffn.experts for layer in spec.layers if isinstance(ffn := layer.ffn, MoeSpec)]
        self.parts = [self._parts(checkpoint, number) for number in range(len(self.layers))]

    def _parts(self, checkpoint: Checkpoint, number: int) -> list[list[Part]]:
        """By expert of a layer."""
        layer, layout = self.layers[number], self.layouts[number]
        bank, found = ExpertBank.empty(layout, self.experts[number], "meta"), defaultdict[int, list[Part]](list)
        if checkpoint.is_converted:
            prefix, wanted = "", converted.of_bank(bank, layer)
        else:
            prefix = checkpoint.names.layer.format(layer=layer)
            wanted = of_bank(checkpoint.names, bank, f"{layer}.")
        for name, target in wanted:
            for piece in target.pieces:
                expert, part = _placed(piece, checkpoint.entries[prefix + name], layout)
                found[expert].append(part)
        return [found[expert] for expert in range(bank.experts)]

    @property
    def files(self) -> list[Path]:
        """All that hold experts."""
        return list(dict.fromkeys(part.entry.path for layer in self.parts for parts in layer for part in parts))

    @property
    def stored_bytes(self) -> list[int]:
        """By layer what one expert takes in the files."""
        return [sum(_stored(part) for part in layer[0]) for layer in self.parts]

    @property
    def is_straight(self) -> bool:
        """Whether experts are stored as they are wanted, each matrix one run of bytes."""
        return all(task.is_straight for number in range(len(self.parts)) for task in self.tasks(number, 0, None))

    def tasks(self, number: int, expert: int, block: Tensor | None) -> Iterator[Task]:
        """What fills the block of an expert; None: of one that is only looked at."""
        if block is None:
            block = ExpertBank.empty(self.layouts[number], 1, "meta").data[0]
        return (part.task(block) for part in self.parts[number][expert])


def _placed(piece: Piece, entry: Entry, layout: ExpertLayout) -> tuple[int, Part]:
    """The expert that a piece of a bank is of, and the piece as a part of it."""
    into = piece.into
    at = int(into.data.storage_offset()) * into.data.element_size()
    expert, place = divmod(at, layout.bytes)
    return expert, Part(
        entry, piece.first, piece.column, piece.step, place, into.format, into.rows, into.cols, into.data.nbytes
    )


def _stored(part: Part) -> int:
    """Bytes of the file that hold a part."""
    if part.column is not None:
        return part.rows * part.cols * part.entry.row_bytes // part.entry.shape[-1]
    return part.rows * part.entry.row_bytes
