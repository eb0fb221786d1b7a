"""Floats of 8 bits (e4m3), with a scale for each tile, row or tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...kernels import FORMATS, blocks
from ..files import safetensors
from ..files.entry import Entry

FORMAT = FORMATS["fp8"]
SCALES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e8m0fnu)


@dataclass(frozen=True)
class Fp8:
    """codes: [..., R, C]. scales: [..., n, m], a number for each tile of rows x columns; columns are a multiple of 128,
    or all of them."""

    codes: Entry
    scales: Entry
    tile: tuple[int, int]

    format = FORMAT

    def rows(self, first: int, count: int) -> Tensor:
        """Rows [first, first + count) of all, packed: uint8 [count, row_bytes]."""
        codes = safetensors.read_rows(self.codes, first, count).view(torch.uint8)
        (R, C), (height, width) = self.codes.shape[-2:], self.tile
        row, below = torch.arange(first, first + count), -(-R // height)
        at = row // R * below + row % R // height
        start, stop = int(at[0]), int(at[-1]) + 1
        scales = self._scales(start, stop, -(-C // width))
        run = torch.arange(FORMAT.scales.runs(C)) * FORMAT.scales.per // width
        return blocks.join(blocks.Blocks(format=FORMAT, codes=codes, halves=scales[at - start][:, run].contiguous()))

    def _scales(self, start: int, stop: int, across: int) -> Tensor:
        """Rows of the grid of scales: float32 [rows, across]."""
        size = across * self.scales.dtype.itemsize
        buffer = torch.empty((stop - start) * size, dtype=torch.uint8)
        safetensors.read_into(self.scales, start * size, buffer)
        return buffer.view(self.scales.dtype).view(-1, across).float()


def find(codes: Entry, scales: Entry, tile: tuple[int, int] | None) -> Fp8:
    """The weight of two tensors. tile: as the config says it; shapes say the rest. Raises CheckpointError where they do
    not belong together."""
    if len(codes.shape) >= 2 and scales.dtype in SCALES:
        for one in (tile, *_usual_tiles(codes, scales)):
            if one is not None and _count(scales) == _tiles(codes, one):
                return Fp8(codes, scales, one)
    raise CheckpointError(
        f"{scales.path}: '{scales.name}' {list(scales.shape)} are no scales of '{codes.name}' {list(codes.shape)}, by "
        "tensor, row or tiles of 128 columns: get the unquantised checkpoint"
    )


def _usual_tiles(codes: Entry, scales: Entry) -> list[tuple[int, int]]:
    """By tensor, by row, by tiles of 128 x 128."""
    R, C = codes.shape[-2:]
    return [(R, C), (1, C), (128, 128)]


def _tiles(codes: Entry, tile: tuple[int, int]) -> int:
    *more, R, C = codes.shape
    return int(torch.tensor(more).prod()) * -(-R // tile[0]) * -(-C // tile[1])


def _count(scales: Entry) -> int:
    return scales.nbytes // scales.dtype.itemsize
