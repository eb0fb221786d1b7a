"""The head as drafts use it: its first rows, and the last ones, where special tokens are. Both are views: no copy, and
no byte more in memory."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from ....kernels import Ops
from ...ledger.passes import MEMORIES
from ...model.decoder import Decoder, Head, Output


class DraftHead:
    """In place of the `head` of a decoder that drafts. last: of its rows, those that are read besides. rows: how many
    of the first are multiplied from now on. seconds: that this took; read: its bytes, each once a pass."""

    def __init__(self, whole: Head, last: int) -> None:
        self.whole, self.vocab, self.last = whole, whole.weight.rows, last
        self.rows = self.vocab
        self.seconds, self.read = 0.0, 0
        self._part = cache(whole.part)

    def __call__(self, ops: Ops, h_RD: Tensor) -> Tensor:
        """Logits: float32 [R, rows + last], or [R, V]."""
        start = time.perf_counter()
        parts = [self._part(*ends) for ends in self._ends()]
        found = [part(ops, h_RD) for part in parts]
        self.read += sum(part.weight.nbytes for part in parts) if len(h_RD) else 0
        self.seconds += time.perf_counter() - start
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def _ends(self) -> list[tuple[int, int]]:
        """Which rows these are."""
        hole = self.left_out()
        return [(0, hole.start), (hole.stop, self.vocab)] if hole else [(0, self.vocab)]

    def left_out(self) -> range:
        """Tokens that cannot be drafted now."""
        return range(self.rows, self.vocab - self.last)

    def token(self, index: int) -> int:
        """The token of a logit."""
        return index if index < self.rows else index + len(self.left_out())


def put(decoder: Decoder, last: int) -> DraftHead:
    """Gives a decoder such a head."""
    found = DraftHead(Head(decoder.spec, decoder.weights), last)
    decoder.head = found
    decoder.sizes = replace(decoder.sizes, head=0)  # the head says itself what it read
    return found


def read_of(out: Output, head: int) -> int:
    """Bytes that a pass read from memory, of which so many are the head's; the device is done with it."""
    each = [out.read, *(work.bytes for work in out.layers())]
    return head + sum(sum(read[name].values()) for read in each for name in MEMORIES if name in read)
