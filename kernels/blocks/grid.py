"""Files whose weights are points of a grid (iq1 to iq3), taken apart into the codes of their values.

Which values a point has stands in tables of the gguf package, which reads them: blocks are given to it with a half of
1, and each value that comes out, divided by its factor, is one of the few that a format has. Nothing is rounded. It is
slower than the other types, and happens once, while loading.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import OptionError
from . import Blocks

if TYPE_CHECKING:
    from ..formats import Format

ONE = 0x3C00  # the half 1.0
SPREAD = (48, 50, 52, 54)  # where iq1_m has four words, each with a part of the half in its upper 4 bits


def read(name: str, b: Tensor, format: Format) -> Blocks:
    """uint8 [R, blocks, bytes of a block] as codes, halves and integers; raises OptionError without the package."""
    halves, alone = _halves(name, b)
    units = UNITS[name](b).to(torch.int8).flatten(1)
    values = _values(name, alone) / format.scales.gain
    codes = _codes(values / units.float().repeat_interleave(format.scales.per, 1), format.codes.table)
    return Blocks(format=format, codes=codes, halves=halves, units=units)


def _values(name: str, alone: Tensor) -> Tensor:
    """What the package makes of blocks: float32 [R, C]."""
    try:
        gguf: Any = import_module("gguf")
        quants: Any = import_module("gguf.quants")
    except ImportError as missing:
        raise OptionError(f"{name.upper()} needs the tables of the gguf package: pip install gguf") from missing
    rows = alone.reshape(alone.shape[0], -1).numpy()
    values: Tensor = torch.from_numpy(quants.dequantize(rows, gguf.GGMLQuantizationType[name.upper()]))
    return values


def _codes(values: Tensor, table: tuple[float, ...]) -> Tensor:
    """The code of each value of a table: uint8."""
    sizes = torch.full((256,), 255, dtype=torch.uint8)
    for code, value in reversed([*enumerate(table)]):
        sizes[int(value) + 128] = code
    return sizes[(values.round() + 128).long().clamp(0, 255)]


def _halves(name: str, b: Tensor) -> tuple[Tensor, Tensor]:
    """The halves [R, blocks], and the blocks with halves of 1."""
    alone = b.clone()
    if name != "iq1_m":
        alone[..., 0], alone[..., 1] = ONE & 255, ONE >> 8
        return b[..., :2].contiguous().view(torch.float16).flatten(1), alone
    half = torch.zeros(b.shape[:2], dtype=torch.int32)
    for place, at in enumerate(SPREAD):
        half |= (b[..., at + 1].int() >> 4) << 4 * place
        alone[..., at + 1] = b[..., at + 1] & 15 | (ONE >> 4 * place & 15) << 4
    return half.to(torch.int16).view(torch.float16), alone


def _words(b: Tensor, dtype: torch.dtype) -> Tensor:
    return b.contiguous().view(dtype).int()


def _odd(scale: Tensor) -> Tensor:
    """Factors are 1/2 and whole numbers in a file; twice that here."""
    return 2 * scale.int() + 1


def _pairs(b: Tensor) -> Tensor:
    """Two scales a byte, the lower half first."""
    return _odd(torch.stack([b & 15, b >> 4], dim=-1).flatten(-2))


def _top_bits(b: Tensor) -> Tensor:
    """The upper 4 bits of every word of 4 bytes."""
    return _odd(b.unflatten(-1, (-1, 4))[..., 3] >> 4)


def _iq1_m(b: Tensor) -> Tensor:
    words = _words(b[..., 48:56], torch.int16)
    return _odd(torch.stack([words >> at & 7 for at in (0, 3, 6, 9)], dim=-1).flatten(-2))


UNITS: dict[str, Callable[[Tensor], Tensor]] = {
    "iq3_s": lambda b: _pairs(b[..., 106:110]),
    "iq3_xxs": lambda b: _top_bits(b[..., 66:98]),
    "iq2_xxs": lambda b: _top_bits(b[..., 2:66].unflatten(-1, (8, 8))[..., 4:].flatten(-2)),
    "iq2_xs": lambda b: _pairs(b[..., 66:74]),
    "iq2_s": lambda b: _pairs(b[..., 74:82]),
    "iq1_s": lambda b: _odd(_words(b[..., 34:50], torch.int16) >> 12 & 7),
    "iq1_m": _iq1_m,
}
