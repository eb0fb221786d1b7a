"""Rows of block formats in plain torch: put together from codes and scales, and taken apart again.

`Blocks` is what a row says, whatever the order of its bytes: a code for each weight, and the numbers that its factors
and minimums are made of. `join` and `split` are the bytes of `formats.py`, `values`, `factors` and `minimums` their
meaning.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..formats import BLOCK, GROUP, Format, Half, ScaleKind

SIGNED: tuple[ScaleKind, ...] = ("byte", "byte16")
HALVES: dict[Half, torch.dtype] = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """R rows of C weights in a block format.

    codes: uint8 [R, C]. halves, min_halves: of the dtype of `HALVES` [R, C / shared], or C / per where each factor is a
    half, rounded up. units, min_units: uint8 or int8 [R, C / per]; zero points are units. What a format does not have
    is None.
    """

    format: Format
    codes: Tensor
    halves: Tensor | None = None
    min_halves: Tensor | None = None
    units: Tensor | None = None
    min_units: Tensor | None = None


def join(blocks: Blocks) -> Tensor:
    """The bytes of the rows: uint8 [R, row_bytes]."""
    form, (rows, cols) = blocks.format, blocks.codes.shape
    packed = torch.zeros(rows, form.row_bytes(cols), dtype=torch.uint8, device=blocks.codes.device)
    scales = torch.cat(_scale_bytes(blocks), dim=1)
    packed[:, : scales.shape[1]] = scales
    packed[:, form.scales_bytes(cols) :] = _planes(blocks.codes, form)
    return packed


def split(data: Tensor, format: Format, cols: int) -> Blocks:
    """What rows uint8 [R, row_bytes] say."""
    kind, start = format.scales, 0

    def take(size: int) -> Tensor:
        nonlocal start
        start += size
        return data[:, start - size : start].contiguous()

    halves = min_halves = units = min_units = None
    if kind.half_bytes:
        dtype = HALVES[kind.half]
        size = kind.halves(cols) * dtype.itemsize
        halves = take(size).view(dtype)
        min_halves = take(size).view(dtype) if kind.has_min else None
    if kind.unit_bytes:
        units = _interleaved(take(kind.runs(cols)), kind.per)
        if kind.has_min:
            units, min_units = units & 15, units >> 4
        if kind.kind == "six_min":
            assert min_units is not None
            high = _fields(take(cols // 64).reshape(data.shape[0], -1, 4), 4).flatten(1)
            units, min_units = units | (high & 3) << 4, min_units | high >> 2 << 4
        if kind.kind in SIGNED:
            units = units.view(torch.int8)
    codes = _codes(data[:, format.scales_bytes(cols) :], format, cols)
    return Blocks(format=format, codes=codes, halves=halves, min_halves=min_halves, units=units, min_units=min_units)


def factors(blocks: Blocks) -> Tensor:
    """The factor of each run of `per` weights: float32 [R, C / per]."""
    if blocks.halves is None:
        assert blocks.units is not None
        return torch.ldexp(torch.ones_like(blocks.units, dtype=torch.float32), blocks.units.int() - 128)
    if blocks.format.scales.kind == "half_zero":
        return blocks.halves.float()
    if blocks.format.scales.kind == "e4m3_16":
        assert blocks.units is not None
        return blocks.halves * blocks.units.view(torch.float8_e4m3fn).float()
    return _times(blocks.halves, blocks.units, blocks.format.scales.gain)


def minimums(blocks: Blocks) -> Tensor | None:
    """The minimum of each run of `per` weights: float32 [R, C / per]; None where a format has none."""
    if blocks.format.scales.kind == "half_zero":
        assert blocks.halves is not None
        assert blocks.units is not None
        return -(blocks.halves.float() * blocks.units.float())
    return None if blocks.min_halves is None else _times(blocks.min_halves, blocks.min_units)


def spread(numbers: Tensor, blocks: Blocks) -> Tensor:
    """What each run of `per` weights has, [R, C / per], for each weight: [R, C]."""
    return numbers.repeat_interleave(blocks.format.scales.per, 1)[:, : blocks.codes.shape[1]]


def values(blocks: Blocks) -> Tensor:
    """What the codes stand for, before their factor: float32 [R, C]."""
    kind = blocks.format.codes
    if kind.table:
        return torch.tensor(kind.table, dtype=torch.float32, device=blocks.codes.device)[blocks.codes.long()]
    codes = blocks.codes.view(torch.int8) if kind.bits == 8 else blocks.codes
    return codes.float() - kind.offset


def weights(blocks: Blocks) -> Tensor:
    """factor * value + minimum: float32 [R, C], each operation rounded."""
    found = values(blocks) * spread(factors(blocks), blocks)
    least = minimums(blocks)
    return found if least is None else found + spread(least, blocks)


def _times(halves: Tensor, units: Tensor | None, gain: float = 1.0) -> Tensor:
    if units is None:
        return halves.float()
    return (halves.float() * gain).repeat_interleave(units.shape[1] // halves.shape[1], 1) * units.float()


def _scale_bytes(blocks: Blocks) -> list[Tensor]:
    kind = blocks.format.scales
    found = [half.contiguous().view(torch.uint8) for half in (blocks.halves, blocks.min_halves) if half is not None]
    if blocks.units is None:
        return found
    units, least = blocks.units.view(torch.uint8), blocks.min_units
    low = units if least is None else units & 15 | least << 4
    found.append(_by_half(low, kind.per))
    if kind.kind == "six_min":
        assert least is not None
        high = (units >> 4 | least >> 4 << 2).reshape(units.shape[0], -1, 2, 4)
        found.append((high[:, :, 0] | high[:, :, 1] << 4).flatten(1))
    return found


def _by_half(units: Tensor, per: int) -> Tensor:
    """Those of the first halves of all blocks, then those of the second halves."""
    return units if per >= BLOCK else torch.cat([units[:, 0::2], units[:, 1::2]], dim=1)


def _interleaved(units: Tensor, per: int) -> Tensor:
    """As `_by_half` was given them."""
    if per >= BLOCK:
        return units
    return torch.stack(units.chunk(2, dim=1), dim=2).flatten(1)


def _planes(codes: Tensor, format: Format) -> Tensor:
    """Codes [R, C] as groups of planes."""
    blocks = codes.reshape(codes.shape[0], -1, BLOCK)
    groups = []
    for group in blocks.split(GROUP, dim=1):
        low = sum(format.codes.planes)
        for bits in format.codes.planes:  # the narrowest plane holds the highest bits
            low -= bits
            groups.append(_plane(group >> low & (1 << bits) - 1, bits))
    return torch.cat(groups, dim=1)


def _plane(fields: Tensor, bits: int) -> Tensor:
    """Fields [R, blocks, 32] of so many bits as bytes [R, blocks * 4 bits]."""
    by_byte = fields.reshape(*fields.shape[:2], 8 // bits, 4 * bits)
    packed = by_byte[:, :, 0].clone()
    for at in range(1, 8 // bits):
        packed |= by_byte[:, :, at] << at * bits
    return packed.flatten(1)


def _codes(data: Tensor, format: Format, cols: int) -> Tensor:
    """Groups of planes as codes [R, C]."""
    found, start, left = [], 0, cols // BLOCK
    while left:
        count, low = min(left, GROUP), sum(format.codes.planes)
        group = torch.zeros(data.shape[0], count, BLOCK, dtype=torch.uint8, device=data.device)
        for bits in format.codes.planes:
            low -= bits
            size = count * 4 * bits
            group |= _fields(data[:, start : start + size].reshape(-1, count, 4 * bits), bits) << low
            start += size
        found.append(group.flatten(1))
        left -= count
    return torch.cat(found, dim=1)


def _fields(plane: Tensor, bits: int) -> Tensor:
    """Bytes [R, blocks, 4 bits] as fields [R, blocks, 32]."""
    return torch.cat([plane >> at * bits & (1 << bits) - 1 for at in range(8 // bits)], dim=2)
