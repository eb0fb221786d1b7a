"""The choices of a trace, pass by pass, packed: by layer the experts that the tokens of a pass chose, each once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..protocol import Shape

Ids = NDArray[np.integer]
Pass = list[tuple[int, ...]]  # by layer, in rising order


@dataclass(frozen=True, kw_only=True, eq=False)
class Choices:
    """`chosen[offsets[n] : offsets[n + 1]]` (uint16) are those of layer n % layers in pass n // layers. tokens: in all
    passes together."""

    layers: int
    tokens: int
    offsets: NDArray[np.int64]
    chosen: NDArray[np.uint16]

    @property
    def passes(self) -> int:
        return (len(self.offsets) - 1) // self.layers

    def __iter__(self) -> Iterator[Pass]:
        offsets = self.offsets.tolist()
        for first in range(0, len(offsets) - 1, self.layers):
            cuts = offsets[first : first + self.layers + 1]
            chosen = self.chosen[cuts[0] : cuts[-1]].tolist()
            yield [tuple(chosen[a - cuts[0] : b - cuts[0]]) for a, b in pairwise(cuts)]


def of_batches(ids_TLK: Ids, batch: int = 1) -> Choices:
    """Passes of `batch` tokens each: ids [tokens, layers, top k] of layers with experts."""
    return of_passes(ids_TLK, np.arange(len(ids_TLK)) // batch)


def of_passes(ids_TLK: Ids, pass_T: Ids) -> Choices:
    """The tokens of a pass are computed together. pass_T: rising, the pass of every token. An id of -1 is none: the
    token did not go through that layer."""
    (T, L, K), numbers = ids_TLK.shape, np.unique(pass_T)
    there_TLK = ids_TLK >= 0
    if len(numbers) == T and there_TLK.all():  # one token each: its experts are different already
        rows = np.sort(ids_TLK.astype(np.uint16), axis=-1)
        return Choices(layers=L, tokens=T, offsets=np.arange(T * L + 1, dtype=np.int64) * K, chosen=rows.ravel())
    most = int(ids_TLK.max(initial=0)) + 1
    row_T = np.searchsorted(numbers, pass_T)
    key_TLK = ((row_T[:, None] * L + np.arange(L)) * most)[:, :, None] + ids_TLK
    keys = np.unique(key_TLK[there_TLK])
    starts = np.arange(len(numbers) * L + 1, dtype=np.int64) * most
    offsets = np.searchsorted(keys, starts).astype(np.int64)
    return Choices(layers=L, tokens=T, offsets=offsets, chosen=(keys % most).astype(np.uint16))


def counts_of(ids_TLK: Ids, shape: Shape) -> list[list[float]]:
    """By layer and expert how many tokens chose it."""
    return [
        np.bincount(ids[ids >= 0], minlength=count).astype(float).tolist()
        for ids, count in zip(ids_TLK.swapaxes(0, 1), shape.experts, strict=True)
    ]
