"""Rounding floats to block formats, in plain torch.

q8_0, q4_0, q4_1, q5_0, q5_1 and mxfp4 round as GGUF does. Where the factors are integers times a half, each run of
weights first gets the factor (and the minimum) that its range asks for, these are rounded to integers of the row's
superblock, and the codes are chosen last, against the factors as they came out. Formats with floats of 8 bits give the
largest magnitude of a run the largest float, those with a zero point reach from the least value to the largest one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..formats import BLOCK, Format
from . import HALVES, Blocks, factors, join, minimums, spread
from .ggml import GRIDS

E4M3_MOST, E2M1_MOST = 448.0, 12.0  # the largest numbers; of e2m1 doubled


def pack(values_RC: Tensor, format: Format) -> Tensor:
    """Floats [R, C] as rows of a block format: uint8 [R, row_bytes]."""
    x = values_RC.float()
    return join(ROUNDINGS[format.name](x, format))


def _runs(x: Tensor, size: int) -> Tensor:
    """[R, runs, size], a last one filled up with zeros."""
    return torch.nn.functional.pad(x, (0, -x.shape[1] % size)).reshape(x.shape[0], -1, size)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.zeros_like(scale), 1.0 / scale)


def _peak(runs: Tensor) -> Tensor:
    """The value of largest magnitude of each run, the first of equals: [R, runs, 1]."""
    return runs.gather(-1, runs.abs().argmax(-1, keepdim=True))


def _q8_0(x: Tensor, format: Format) -> Blocks:
    """d = max|x| / 127, q = round(x / d)."""
    runs = _runs(x, BLOCK)
    scale = _peak(runs).abs() / 127.0
    codes = (runs * _inverse(scale)).round().clamp(-127, 127).to(torch.int8).view(torch.uint8)
    return Blocks(format=format, codes=codes.flatten(1), halves=scale.squeeze(-1).half())


def _centred(x: Tensor, format: Format) -> Blocks:
    """q4_0, q5_0: d = (the value of largest magnitude) / -offset, q = floor(x / d + offset + 0.5), within the codes."""
    runs, offset = _runs(x, BLOCK), format.codes.offset
    scale = _peak(runs) / -float(offset)
    codes = (runs * _inverse(scale) + (offset + 0.5)).floor().clamp(0, 2 * offset - 1).to(torch.uint8)
    return Blocks(format=format, codes=codes.flatten(1), halves=scale.squeeze(-1).to(HALVES[format.scales.half]))


def _ranged(x: Tensor, format: Format) -> Blocks:
    """q4_1, q5_1: d = (max - min) / most, q = floor((x - min) / d + 0.5)."""
    runs, most = _runs(x, BLOCK), (1 << format.bits) - 1
    least = runs.amin(-1, keepdim=True)
    scale = (runs.amax(-1, keepdim=True) - least) / most
    codes = ((runs - least) * _inverse(scale) + 0.5).floor().clamp(0, most).to(torch.uint8)
    halves = scale.squeeze(-1).half()
    return Blocks(format=format, codes=codes.flatten(1), halves=halves, min_halves=least.squeeze(-1).half())


def _mxfp4(x: Tensor, format: Format) -> Blocks:
    """The exponent of the largest magnitude, less the 2 of e2m1's largest one; then the nearest value."""
    runs = _runs(x, BLOCK)
    peak = runs.abs().amax(-1)
    exponent = torch.where(peak > 0, peak.log2().floor() - 2 + 127, torch.zeros_like(peak)).clamp(0, 255)
    units = exponent.to(torch.uint8)
    scale = torch.ldexp(torch.ones_like(peak), units.int() - 128)
    return Blocks(format=format, codes=_nearest(runs / scale.unsqueeze(-1), format.codes.table).flatten(1), units=units)


def _fp8(x: Tensor, format: Format) -> Blocks:
    halves = _runs(x, format.scales.per).abs().amax(-1) / E4M3_MOST
    found = Blocks(format=format, codes=torch.zeros(x.shape, dtype=torch.uint8), halves=halves)
    scaled = x * _inverse(spread(halves, found))
    return _with_codes(found, _e4m3(scaled))


def _e4m3(x: Tensor) -> Tensor:
    """The nearest codes."""
    return x.clamp(-E4M3_MOST, E4M3_MOST).to(torch.float8_e4m3fn).view(torch.uint8)


def _zero_point(x: Tensor, format: Format) -> Blocks:
    runs = _runs(x, format.scales.per)
    least, largest = runs.amin(-1).clamp(max=0.0), runs.amax(-1).clamp(min=0.0)
    halves = ((largest - least) / 15).to(HALVES[format.scales.half])
    inverse = _inverse(halves.float())
    units = (-least * inverse).round().clamp(0, 15).to(torch.uint8)
    codes = (runs * inverse.unsqueeze(-1) + units.unsqueeze(-1)).round().clamp(0, 15).to(torch.uint8)
    return Blocks(format=format, codes=codes.flatten(1)[:, : x.shape[1]].contiguous(), halves=halves, units=units)


def _nvfp4(x: Tensor, format: Format) -> Blocks:
    """The row's number gives the largest unit the largest float."""
    runs = _runs(x, format.scales.per)
    wanted = runs.abs().amax(-1) / E2M1_MOST
    halves = wanted.amax(-1, keepdim=True) / E4M3_MOST
    units = _e4m3(wanted * _inverse(halves))
    found = Blocks(format=format, codes=torch.zeros(x.shape, dtype=torch.uint8), halves=halves, units=units)
    scaled = runs * _inverse(factors(found)).unsqueeze(-1)
    return _with_codes(found, _nearest(scaled, format.codes.table).flatten(1))


def _nearest(values: Tensor, table: tuple[float, ...]) -> Tensor:
    """The code of the nearest value of a table, the lower code of equals."""
    entries = torch.tensor(table, dtype=torch.float32)
    best, codes = (values - entries[0]).abs(), torch.zeros_like(values, dtype=torch.uint8)
    for code in range(1, len(table)):
        distance = (values - entries[code]).abs()
        codes = torch.where(distance < best, torch.full_like(codes, code), codes)
        best = torch.minimum(distance, best)
    return codes


def _table(x: Tensor, format: Format) -> Blocks:
    """iq1 to iq4: the value of largest magnitude gets the table's first entry, its largest one."""
    runs, table = _runs(x, format.scales.per), format.codes.table
    wanted = (_peak(runs) / table[0]).squeeze(-1)
    blocks = _with_factors(x, format, wanted)
    scaled = runs * _inverse(factors(blocks)).unsqueeze(-1)
    return _with_codes(blocks, _nearest(scaled, table).flatten(1))


def _symmetric(x: Tensor, format: Format) -> Blocks:
    """q3_k, q6_k: the value of largest magnitude gets the lowest code."""
    runs, offset = _runs(x, format.scales.per), format.codes.offset
    blocks = _with_factors(x, format, (_peak(runs) / -float(offset)).squeeze(-1))
    codes = (runs * _inverse(factors(blocks)).unsqueeze(-1) + offset).round().clamp(0, 2 * offset - 1)
    return _with_codes(blocks, codes.to(torch.uint8).flatten(1))


def _with_factors(x: Tensor, format: Format, wanted: Tensor) -> Blocks:
    """Blocks whose factors are as near to those wanted [R, C / per] as the format has them; codes are still 0."""
    codes = torch.zeros(x.shape, dtype=torch.uint8)
    if not format.scales.shared:
        return Blocks(format=format, codes=codes, halves=wanted.half())
    if format.scales.gain != 1.0 or format.name == "iq3_s":
        return _with_odd_factors(wanted, codes, format)
    most = 31.0 if format.name in ("q3_k", "iq4_xs") else 127.0  # integers of 6 bits, or of 8
    together = _runs(wanted, format.scales.shared // format.scales.per)
    halves = (_peak(together) / -(most + 1)).squeeze(-1).half()
    units = (together * _inverse(halves.float()).unsqueeze(-1)).round().clamp(-most - 1, most)
    return Blocks(format=format, codes=codes, halves=halves, units=units.flatten(1).to(torch.int8))


def _with_odd_factors(wanted: Tensor, codes: Tensor, format: Format) -> Blocks:
    """Of formats whose integers are 1, 3 ... 31 or 15: the sign is the half's."""
    most = 15.0 if format.name.startswith("iq1") else 31.0
    together = _runs(wanted.abs(), format.scales.shared // format.scales.per)
    halves = (together.amax(-1) / most / format.scales.gain).half()
    inverse = _inverse(halves.float() * format.scales.gain).unsqueeze(-1)
    units = ((together * inverse - 1) / 2).round().clamp(0, (most - 1) / 2) * 2 + 1
    return Blocks(format=format, codes=codes, halves=halves, units=units.flatten(1).to(torch.int8))


def _with_minimum(x: Tensor, format: Format) -> Blocks:
    """q2_k, q4_k, q5_k: from the least value, or 0 if that is less, to the largest."""
    per, together = format.scales.per, format.scales.shared // format.scales.per
    runs, most = _runs(x, per), (1 << format.bits) - 1
    least = runs.amin(-1).clamp(max=0.0)
    wanted = (runs.amax(-1).clamp(min=0.0) - least) / most
    top = 15.0 if format.name == "q2_k" else 63.0
    halves = (_runs(wanted, together).amax(-1) / top).half()
    min_halves = (_runs(least, together).amin(-1) / top).half()
    blocks = Blocks(
        format=format, codes=torch.zeros(x.shape, dtype=torch.uint8), halves=halves, min_halves=min_halves,
        units=_units(wanted, halves, top), min_units=_units(least, min_halves, top),
    )  # fmt: skip
    lowest = minimums(blocks)
    assert lowest is not None
    codes = ((runs - lowest.unsqueeze(-1)) * _inverse(factors(blocks)).unsqueeze(-1)).round().clamp(0, most)
    return _with_codes(blocks, codes.to(torch.uint8).flatten(1))


def _units(wanted: Tensor, halves: Tensor, top: float) -> Tensor:
    """Integers that, times their half, are nearest to what is wanted."""
    together = wanted.shape[1] // halves.shape[1]
    inverse = _inverse(halves.float()).repeat_interleave(together, 1)
    return (wanted * inverse).round().clamp(0, top).to(torch.uint8)


def _with_codes(blocks: Blocks, codes: Tensor) -> Blocks:
    return Blocks(**{**vars(blocks), "codes": codes})


ROUNDINGS: dict[str, Callable[[Tensor, Format], Blocks]] = {
    "q8_0": _q8_0, "q4_0": _centred, "q5_0": _centred, "q4_1": _ranged, "q5_1": _ranged, "mxfp4": _mxfp4,
    **dict.fromkeys(("iq4_nl", "iq4_xs", *GRIDS), _table), "q3_k": _symmetric, "q6_k": _symmetric,
    "q2_k": _with_minimum, "q4_k": _with_minimum, "q5_k": _with_minimum, "q4_0_bf16": _centred, "fp8": _fp8,
    "int4_g32": _zero_point, "int4_g32_bf16": _zero_point, "int4_g128": _zero_point, "int4_g128_bf16": _zero_point,
    "nvfp4": _nvfp4,
}  # fmt: skip
