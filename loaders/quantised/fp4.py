"""Floats of 4 bits (e2m1): NVFP4, with a float of 8 bits for 16 weights and one number for all, and MXFP4, with a power
of two for 32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...kernels import FORMATS, blocks
from ..files import safetensors
from ..files.entry import Entry
from . import codes

NVFP4, MXFP4 = FORMATS["nvfp4"], FORMATS["mxfp4"]


@dataclass(frozen=True)
class Nvfp4:
    """codes: U8 [R, C / 2], the low half first. scales: F8_E4M3 [R, C / 16]. whole: F32 of one value, which scales are
    times, or, where `divided`, over."""

    codes: Entry
    scales: Entry
    whole: Entry
    divided: bool

    format = NVFP4

    def rows(self, first: int, count: int) -> Tensor:
        """Rows [first, first + count), packed: uint8 [count, row_bytes]."""
        found = codes.pairs(safetensors.read_rows(self.codes, first, count))
        units = safetensors.read_rows(self.scales, first, count).view(torch.uint8)
        whole = safetensors.read_rows(self.whole, 0, 1).view(1, 1)
        half = (1 / whole if self.divided else whole) / 2  # values are doubled
        return blocks.join(blocks.Blocks(format=NVFP4, codes=found, halves=half.expand(count, 1), units=units))


@dataclass(frozen=True)
class Mxfp4:
    """codes: U8 [..., R, C / 2], the low half first, or [..., R, C / 32, 16]. scales: U8 [..., R, C / 32], exponents
    plus 127."""

    codes: Entry
    scales: Entry

    format = MXFP4

    def rows(self, first: int, count: int) -> Tensor:
        """Rows [first, first + count) of all, packed: uint8 [count, row_bytes]."""
        runs = self.scales.shape[-1]
        buffer = torch.empty(count * runs * 16, dtype=torch.uint8)
        safetensors.read_into(self.codes, first * runs * 16, buffer)
        units = safetensors.read_rows(self.scales, first, count)
        return blocks.join(blocks.Blocks(format=MXFP4, codes=codes.pairs(buffer.view(count, -1)), units=units))


def check(values: Entry, scales: Entry, per: int) -> None:
    """Raises CheckpointError unless each `per` values have a scale."""
    if values.nbytes * 2 != scales.nbytes * per or len(scales.shape) < 2:
        raise CheckpointError(
            f"{scales.path}: '{scales.name}' {list(scales.shape)} are no scales of '{values.name}' "
            f"{list(values.shape)}, one for {per} of 4 bits: download it again"
        )
