"""The experts that one node has in RAM: its own, and for a while those of a host that was lost.

    one mapping a layer, as large as all of its experts; only the blocks of experts that are here take memory
    own experts       loaded at the start, never given up
    adopted ones      read from the model's files when the first row wants them; the one that was longest unused goes
                      when `room` bytes are taken

An expert has the same number here as in the model, so that no table has to be kept, and nothing moves when one comes.
"""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ...kernels import ExpertLayout, Ops
from ...kernels.packed import ExpertBank
from ..experts.disk.files import ExpertFiles
from ..experts.disk.reads import Reading, Reads
from ..policies.protocol import Key

AT_ONCE = 16  # experts that are read at a time


def mapped_bank(layout: ExpertLayout, experts: int) -> tuple[ExpertBank, mmap.mmap]:
    """A bank that takes memory by the page, when it is written."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, experts * layout.bytes, flags=flags)
    data = torch.frombuffer(memory, dtype=torch.uint8)
    return ExpertBank(layout, data.view(experts, layout.bytes)), memory


class Shelf:
    """Experts of all layers, which count over those with experts. room: bytes for adopted ones."""

    def __init__(self, files: ExpertFiles, ops: Ops, room: int = 0) -> None:
        self.files, self.ops, self.room, self.reads = files, ops, room, Reads()
        banks = [mapped_bank(*one) for one in zip(files.layouts, files.stored.experts, strict=True)]
        self.banks, self.maps = [bank for bank, _ in banks], [memory for _, memory in banks]
        self.own: set[Key] = set()
        self.adopted: OrderedDict[Key, None] = OrderedDict()
        self.read_bytes = 0  # of files, since the start

    @property
    def nbytes(self) -> int:
        """Bytes of experts that are here."""
        return sum(self.files.layouts[layer].bytes for layer, _ in (*self.own, *self.adopted))

    def take(self, keys: Iterable[Key], progress: Callable[[int, int], None] | None = None) -> None:
        """Makes these its own, and loads those that are not here. Raises CheckpointError."""
        wanted = set(keys)
        for key in [*self.own - wanted, *self.adopted.keys() - wanted]:
            self._drop(key)
        missing = sorted(wanted - self.own - self.adopted.keys())
        self.own = wanted - {*missing}
        self.adopted.clear()
        total = sum(self.files.layouts[layer].bytes for layer, _ in missing)
        done = 0
        for key in self._load(missing):
            self.own.add(key)
            done += self.files.layouts[key[0]].bytes
            if progress is not None:
                progress(done, total)

    def adopt(self, layer: int, experts: Sequence[int]) -> None:
        """Sees to it that experts of a layer are here."""
        keys = [(layer, expert) for expert in experts if (layer, expert) not in self.own]
        for key in keys:
            if key in self.adopted:
                self.adopted.move_to_end(key)
        missing = [key for key in keys if key not in self.adopted]
        if not missing:
            return
        size = self.files.layouts[layer].bytes
        taken = sum(self.files.layouts[number].bytes for number, _ in self.adopted) + len(missing) * size
        for key in [key for key in self.adopted if key not in {*keys}]:
            if taken <= self.room:
                break
            self._drop(key)
            taken -= self.files.layouts[key[0]].bytes
        for key in self._load(missing):
            self.adopted[key] = None

    def _drop(self, key: Key) -> None:
        """Gives up an expert's memory, but for the pages that it shares with neighbours."""
        layer, expert = key
        self.own.discard(key)
        self.adopted.pop(key, None)
        size = self.files.layouts[layer].bytes
        first = -(-expert * size // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (expert + 1) * size // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first and hasattr(mmap, "MADV_DONTNEED"):
            self.maps[layer].madvise(mmap.MADV_DONTNEED, first, last - first)

    def _load(self, keys: Sequence[Key]) -> Iterator[Key]:
        """Reads experts, some at a time; each as soon as it is here."""
        coming: dict[Reading, Key] = {}
        left = list(reversed(keys))
        try:
            while left or coming:
                while left and len(coming) < AT_ONCE:
                    layer, expert = key = left.pop()
                    reading = self.files.reading(key, self.banks[layer].data[expert])
                    coming[reading] = key
                    self.reads.start(reading)
                for reading in self.reads.wait(coming):
                    if reading.error is not None:
                        raise reading.error
                    key = coming.pop(reading)
                    self.read_bytes += self.files.read_bytes[key[0]]
                    yield key
        finally:
            for reading in coming:
                self.reads.stop(reading)

    def rows(self, layer: int, x_TD: Tensor, at_N: Tensor, ids_N: Tensor, taken_N: Tensor | None) -> Tensor:
        """What experts ids [N] give of rows at [N] of x, times weights if there are some: float32 [N, hidden]."""
        experts = sorted({*ids_N.tolist()})
        self.adopt(layer, experts)
        taken = torch.ones(len(ids_N)) if taken_N is None else taken_N
        ids_N1, x_ND = ids_N.int().unsqueeze(1), x_TD[at_N.long()]
        found: Tensor = self.ops.experts(x_ND, ids_N1, taken.unsqueeze(1), self.banks[layer])
        return found

    def close(self) -> None:
        self.reads.close()
        self.files.close()
