"""Integers of 4 bits in groups along a row, with a scale and, in some, a zero point each: AWQ, GPTQ, and what
compressed-tensors packs.

A format is found by the type of scale, the length of a group and whether there are zero points; what has shorter groups
than the format is exact, what has longer ones repeats them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...kernels import Format, blocks
from ..files import safetensors
from ..files.entry import Entry
from ..quants.packed_weights import int4_format
from . import codes

MIDDLE = 8  # the code that stands for 0 where no zero point says another


def format_of(cols: int, scales: Entry, groups: int, has_zeros: bool) -> Format:
    """The format that holds rows of so many groups; raises CheckpointError where none does."""
    found = int4_format(cols, groups, safetensors.NAMES[scales.dtype], has_zeros)
    if found is None:
        raise CheckpointError(
            f"{scales.path}: '{scales.name}' has {safetensors.NAMES[scales.dtype]} scales for {groups} groups of a row "
            f"of {cols}; F16 and BF16 can be run, in groups of a multiple of 32: get the unquantised checkpoint"
        )
    return found


def packed(format: Format, found: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """Rows of a format. found: uint8 [R, C]; scales [R, groups]; zeros: uint8 [R, groups], None: the middle."""
    runs = format.scales.runs(found.shape[1])
    group = torch.arange(runs) * format.scales.per * scales.shape[1] // found.shape[1]
    units = None
    if format.scales.unit_bytes:
        units = torch.full((len(found), runs), MIDDLE, dtype=torch.uint8) if zeros is None else zeros[:, group]
    return blocks.join(blocks.Blocks(format=format, codes=found, halves=scales[:, group].contiguous(), units=units))


@dataclass(frozen=True)
class ByRows:
    """As compressed-tensors packs: codes I32 [R, C / 8], scales [R, groups], zeros I32 [R / 8, groups] or none. Codes
    and zeros are signed numbers plus 8."""

    codes: Entry
    scales: Entry
    zeros: Entry | None
    order: Entry | None
    format: Format

    def check_order(self) -> None:
        """Raises CheckpointError for columns that are not in the order of their groups."""
        _check_order(self.order, self.scales.shape[1])

    def rows(self, first: int, count: int) -> Tensor:
        """Rows [first, first + count), packed: uint8 [count, row_bytes]."""
        self.check_order()
        found = codes.pairs(safetensors.read_rows(self.codes, first, count))
        scales, zeros = safetensors.read_rows(self.scales, first, count), None
        if self.zeros is not None:
            start, stop = first // 8, -(-(first + count) // 8)
            by_eight = safetensors.read_rows(self.zeros, start, stop - start)
            zeros = codes.eight_rows(by_eight, False)[first - 8 * start :][:count]
        return packed(self.format, found, scales, zeros)


@dataclass(frozen=True)
class ByColumns:
    """As AWQ and GPTQ pack, the other way round: scales [groups, R], zeros I32 [groups, R / 8], codes I32 [C / 8, R],
    or [C, R / 8] where they are interleaved. Rows are columns here: all is read for any of them. plus: see
    `Quantisation.zero`."""

    codes: Entry
    scales: Entry
    zeros: Entry | None
    order: Entry | None
    format: Format
    interleaved: bool
    plus: int

    def check_order(self) -> None:
        """Raises CheckpointError for columns that are not in the order of their groups."""
        _check_order(self.order, self.scales.shape[0])

    def rows(self, first: int, count: int) -> Tensor:
        """Rows [first, first + count), packed: uint8 [count, row_bytes]."""
        self.check_order()
        stored = safetensors.read_rows(self.codes, 0, self.codes.shape[0])
        if self.interleaved:
            start, stop = first // 8, -(-(first + count) // 8)
            found = codes.eight_rows(stored[:, start:stop].T, True)[first - 8 * start :][:count]
        else:
            found = codes.pairs(stored[:, first : first + count].T)
        scales = safetensors.read_rows(self.scales, 0, self.scales.shape[0])[:, first : first + count].T
        zeros = None
        if self.zeros is not None:
            by_eight = safetensors.read_rows(self.zeros, 0, self.zeros.shape[0])
            zeros = codes.eight_rows(by_eight.T, self.interleaved)[first : first + count] + self.plus
        return packed(self.format, found, scales, zeros)


def _check_order(order: Entry | None, groups: int) -> None:
    """Columns may have been put into groups by importance, not by their place."""
    if order is None:
        return
    cols = order.shape[0]
    if not torch.equal(safetensors.read_rows(order, 0, 1)[0].long(), torch.arange(cols) * groups // cols):
        raise CheckpointError(
            f"{order.path}: '{order.name}' puts columns into groups out of their order (desc_act, actorder), which "
            "cannot be run: get a checkpoint without, or the unquantised one, which can be quantised while loading"
        )
