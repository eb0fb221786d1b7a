"""The experts of a model in its files: what has to be read for one, and converted where it is stored otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor

from ....kernels import ExpertLayout, Ops
from ....loaders.files.held import PIECE, HeldFiles
from ....loaders.weights.by_expert.stored import StoredExperts
from ....loaders.weights.checkpoint import Task, chunks
from ...policies.protocol import Key, Shape
from .reads import Reading, Step


class ExpertFiles:
    """All experts of a checkpoint, in files that are held open. ops: what converts; held: how files are read. Layers
    count over those with experts."""

    def __init__(self, stored: StoredExperts, ops: Ops, held: HeldFiles | None = None) -> None:
        self.stored, self.ops, self.held = stored, ops, held or HeldFiles()
        for path in stored.files:
            self.held.hold(path)
        self.is_straight, self.read_bytes = stored.is_straight, stored.stored_bytes

    @property
    def layouts(self) -> Sequence[ExpertLayout]:
        return self.stored.layouts

    @property
    def shape(self) -> Shape:
        """As policies see it."""
        return Shape(tuple(self.stored.experts), tuple(layout.bytes for layout in self.layouts))

    def check_names(self) -> None:
        """Raises CheckpointError where a path has become another file's."""
        for one in self.held.files.values():
            one.check_name()
            one.check()

    def reading(self, key: Key, block: Tensor) -> Reading:
        """What brings an expert into a block, uint8 [layout.bytes], on the CPU."""
        tasks = list(self.stored.tasks(*key, block))
        layer, expert = key
        name = f"expert {expert} of layer {self.stored.layers[layer]} in {tasks[0].entry.path}"
        return Reading(name, [step for task in tasks for step in self._steps(task)])

    def _steps(self, task: Task) -> Iterator[Step]:
        """A task in parts of which each is one read."""
        if task.is_straight:
            file, offset = self.held.files[task.entry.path], task.entry.offset + task.first * task.entry.row_bytes
            data = task.into.data.view(-1)
            for start in range(0, len(data), PIECE):
                yield partial(file.read_into, offset + start, data[start : start + PIECE])
            return
        for part in chunks(task):
            yield partial(self._convert, part)

    def _convert(self, task: Task) -> None:
        """Reads rows and puts them into their place as they are wanted there."""
        rows = task.read(self.held.read_into)
        if task.entry.packed is not None:  # several tensors, which are read by their names, and through the page cache
            file = self.held.files[task.entry.path]
            file.check_name()
            file.check()
            file.forget_pages()
        if rows is not None:
            task.put(rows, self.ops)

    def close(self) -> None:
        self.held.close()
