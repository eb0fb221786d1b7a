"""Blocks as GGUF files have them, in plain torch: taken apart into codes and scales.

A reader takes uint8 [R, blocks, bytes of a block] and gives `Blocks`: the same codes and scales as stored, nothing
rounded. A minimum that a file's format subtracts is negated. Which bit is what: ggml's block structures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..formats import Format
from . import Blocks


@dataclass(frozen=True)
class FileBlock:
    """`weights` of a row take `bytes` in a file; `read` takes them apart."""

    weights: int
    bytes: int
    read: Callable[[Tensor, Format], Blocks]


def read(data_RB: Tensor, format: Format, cols: int) -> Blocks:
    """Rows of a file, uint8 [R, bytes], as what they say."""
    kind = FILE_BLOCKS[format.name]
    return kind.read(data_RB.reshape(data_RB.shape[0], cols // kind.weights, kind.bytes), format)


def _half(bytes_: Tensor) -> Tensor:
    """Two bytes a block as float16 [R, blocks]."""
    return bytes_.contiguous().view(torch.float16).flatten(1)


def _negated(bytes_: Tensor) -> Tensor:
    """The same with its sign turned, of a NaN too."""
    return (_half(bytes_).view(torch.int16) ^ -32768).view(torch.float16)


def _nibbles(q: Tensor) -> Tensor:
    """Bytes [..., 16] of weights l and l + 16: [..., 32]."""
    return torch.cat([q & 15, q >> 4], dim=-1)


def _bits(packed: Tensor, bits: int) -> Tensor:
    """Fields of bytes [..., n], the lowest fields of all first: [..., 8 / bits * n]."""
    return torch.cat([packed >> at & (1 << bits) - 1 for at in range(0, 8, bits)], dim=-1)


def _fifth_bits(packed: Tensor) -> Tensor:
    """Bit l of 4 bytes belongs to weight l: [..., 32], 16 where it is set."""
    return torch.stack([packed >> at & 1 for at in range(8)], dim=-1).flatten(-2) << 4


def _four_bits(b: Tensor, format: Format) -> Blocks:
    """q4_0, iq4_nl."""
    return Blocks(format=format, codes=_nibbles(b[..., 2:]).flatten(1), halves=_half(b[..., :2]))


def _q4_1(b: Tensor, format: Format) -> Blocks:
    codes = _nibbles(b[..., 4:]).flatten(1)
    return Blocks(format=format, codes=codes, halves=_half(b[..., :2]), min_halves=_half(b[..., 2:4]))


def _q5_0(b: Tensor, format: Format) -> Blocks:
    codes = _nibbles(b[..., 6:]) | _fifth_bits(b[..., 2:6])
    return Blocks(format=format, codes=codes.flatten(1), halves=_half(b[..., :2]))


def _q5_1(b: Tensor, format: Format) -> Blocks:
    codes = (_nibbles(b[..., 8:]) | _fifth_bits(b[..., 4:8])).flatten(1)
    return Blocks(format=format, codes=codes, halves=_half(b[..., :2]), min_halves=_half(b[..., 2:4]))


def _q8_0(b: Tensor, format: Format) -> Blocks:
    return Blocks(format=format, codes=b[..., 2:].flatten(1), halves=_half(b[..., :2]))


def _mxfp4(b: Tensor, format: Format) -> Blocks:
    return Blocks(format=format, codes=_nibbles(b[..., 1:]).flatten(1), units=b[..., 0])


def _two_bits(q: Tensor) -> Tensor:
    """64 bytes: for each 128 weights 32 bytes, whose fields are runs of 32."""
    return _bits(q.unflatten(-1, (2, 32)), 2).flatten(-2)


def _q2_k(b: Tensor, format: Format) -> Blocks:
    scales = b[..., :16].flatten(1)
    return Blocks(
        format=format, codes=_two_bits(b[..., 16:80]).flatten(1), halves=_half(b[..., 80:82]),
        min_halves=_negated(b[..., 82:84]), units=scales & 15, min_units=scales >> 4,
    )  # fmt: skip


def _q3_k(b: Tensor, format: Format) -> Blocks:
    codes = _two_bits(b[..., 32:96]) | _bits(b[..., :32], 1) << 2
    low, high = _bits(b[..., 96:104], 4), _bits(b[..., 104:108], 2)
    units = ((low | high << 4).to(torch.int16) - 32).to(torch.int8)
    return Blocks(format=format, codes=codes.flatten(1), halves=_half(b[..., 108:110]), units=units.flatten(1))


def _six_bits(s: Tensor) -> tuple[Tensor, Tensor]:
    """12 bytes: the factors and the minimums of 8 blocks."""
    low, middle, last = s[..., :4], s[..., 4:8], s[..., 8:]
    units = torch.cat([low & 63, last & 15 | low >> 6 << 4], dim=-1)
    return units.flatten(1), torch.cat([middle & 63, last >> 4 | middle >> 6 << 4], dim=-1).flatten(1)


def _nibble_blocks(q: Tensor) -> Tensor:
    """32 bytes hold two blocks of 32, one in their low halves."""
    return _bits(q.unflatten(-1, (4, 32)), 4).flatten(-2)


def _with_minimums(b: Tensor, format: Format, codes: Tensor) -> Blocks:
    units, min_units = _six_bits(b[..., 4:16])
    return Blocks(
        format=format, codes=codes.flatten(1), halves=_half(b[..., :2]), min_halves=_negated(b[..., 2:4]),
        units=units, min_units=min_units,
    )  # fmt: skip


def _q4_k(b: Tensor, format: Format) -> Blocks:
    return _with_minimums(b, format, _nibble_blocks(b[..., 16:]))


def _q5_k(b: Tensor, format: Format) -> Blocks:
    return _with_minimums(b, format, _nibble_blocks(b[..., 48:]) | _bits(b[..., 16:48], 1) << 4)


def _q6_k(b: Tensor, format: Format) -> Blocks:
    low = _bits(b[..., :128].unflatten(-1, (2, 64)), 4)  # of 128 weights: low halves of 64 bytes, then high ones
    high = _bits(b[..., 128:192].unflatten(-1, (2, 32)), 2)
    codes = (low | high << 4).flatten(1)
    units = b[..., 192:208].contiguous().view(torch.int8).flatten(1)
    return Blocks(format=format, codes=codes, halves=_half(b[..., 208:210]), units=units)


def _iq4_xs(b: Tensor, format: Format) -> Blocks:
    low = torch.stack([b[..., 4:8] & 15, b[..., 4:8] >> 4], dim=-1).flatten(-2)
    high = torch.stack([b[..., 2:4] >> at & 3 for at in range(0, 8, 2)], dim=-1).flatten(-2)
    units = ((low | high << 4).to(torch.int16) - 32).to(torch.int8).flatten(1)
    codes = _nibbles(b[..., 8:].unflatten(-1, (8, 16))).flatten(1)
    return Blocks(format=format, codes=codes, halves=_half(b[..., :2]), units=units)


def _grid(name: str) -> Callable[[Tensor, Format], Blocks]:
    def read(b: Tensor, format: Format) -> Blocks:
        from . import grid

        return grid.read(name, b, format)

    return read


FILE_BLOCKS: dict[str, FileBlock] = {
    "q4_0": FileBlock(32, 18, _four_bits),
    "q4_1": FileBlock(32, 20, _q4_1),
    "q5_0": FileBlock(32, 22, _q5_0),
    "q5_1": FileBlock(32, 24, _q5_1),
    "q8_0": FileBlock(32, 34, _q8_0),
    "iq4_nl": FileBlock(32, 18, _four_bits),
    "mxfp4": FileBlock(32, 17, _mxfp4),
    "q2_k": FileBlock(256, 84, _q2_k),
    "q3_k": FileBlock(256, 110, _q3_k),
    "q4_k": FileBlock(256, 144, _q4_k),
    "q5_k": FileBlock(256, 176, _q5_k),
    "q6_k": FileBlock(256, 210, _q6_k),
    "iq4_xs": FileBlock(256, 136, _iq4_xs),
    **{
        name: FileBlock(256, size, _grid(name))
        for name, size in (
            ("iq3_s", 110), ("iq3_xxs", 98), ("iq2_xxs", 66), ("iq2_xs", 74), ("iq2_s", 82), ("iq1_s", 50),
            ("iq1_m", 56),
        )
    },
}  # fmt: skip
GRIDS = ("iq3_s", "iq3_xxs", "iq2_xxs", "iq2_xs", "iq2_s", "iq1_s", "iq1_m")  # whose points are looked up in tables
