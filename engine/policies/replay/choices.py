"""The choices of a trace, pass by pass, packed: by layer the experts that the tokens of a pass chose, each once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..protocol import Shape

Ids = NDArray[np.integer]
Pass = list[tuple[int, ...]]  # by layer, in rising order


@dataclass(frozen=True, kw_only=True, eq=False)
class Choices:
    """`chosen[offsets[n] : offsets[n + 1]]` (uint16) are those of layer n % layers in pass n // layers. sizes: by pass
    the number of its tokens."""

    layers: int
    sizes: NDArray[np.int64]
    offsets: NDArray[np.int64]
    chosen: NDArray[np.uint16]

    @property
    def tokens(self) -> int:
        """In all passes together."""
        return int(self.sizes.sum())

    @property
    def passes(self) -> int:
        return (len(self.offsets) - 1) // self.layers

    def between(self, first: int, end: int) -> Choices:
        """The passes first .. end - 1."""
        offsets = self.offsets[first * self.layers : end * self.layers + 1]
        chosen = self.chosen[offsets[0] : offsets[-1]]
        return Choices(layers=self.layers, sizes=self.sizes[first:end], offsets=offsets - offsets[0], chosen=chosen)

    def counts(self, experts: Sequence[int]) -> list[list[float]]:
        """By layer and expert in how many passes it was chosen; experts: how many there are, by layer."""
        layer_N = np.arange(len(self.offsets) - 1) % self.layers
        layers = np.repeat(layer_N, np.diff(self.offsets))
        return [
            np.bincount(self.chosen[layers == layer], minlength=count).astype(float).tolist()
            for layer, count in enumerate(experts)
        ]

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
        offsets = np.arange(T * L + 1, dtype=np.int64) * K
        return Choices(layers=L, sizes=np.ones(T, np.int64), offsets=offsets, chosen=rows.ravel())
    most = int(ids_TLK.max(initial=0)) + 1
    row_T = np.searchsorted(numbers, pass_T)
    key_TLK = ((row_T[:, None] * L + np.arange(L)) * most)[:, :, None] + ids_TLK
    keys = np.unique(key_TLK[there_TLK])
    starts = np.arange(len(numbers) * L + 1, dtype=np.int64) * most
    offsets = np.searchsorted(keys, starts).astype(np.int64)
    return Choices(layers=L, sizes=np.bincount(row_T), offsets=offsets, chosen=(keys % most).astype(np.uint16))


def counts_of(ids_TLK: Ids, shape: Shape) -> list[list[float]]:
    """By layer and expert how many tokens chose it."""
    return [
        np.bincount(ids[ids >= 0], minlength=count).astype(float).tolist()
        for ids, count in zip(ids_TLK.swapaxes(0, 1), shape.experts, strict=True)
    ]
