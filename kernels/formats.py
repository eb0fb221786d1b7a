"""Weight formats as data: how wide a block is, how many bytes a row takes, where scales and quants lie.

A row of a matrix is stored on its own, row-major, in one of two shapes:

    f32 f16 bf16    [ values ]                            the checkpoint's own bytes
    q8_0 q4_0       [ f16 scales | pad to 16 B | quants ]   one scale for every 32 weights

The quantised rows are a byte shuffle of GGUF's blocks of the same name: scales gathered in front instead of one
before every 16 or 32 bytes of quants. Nothing is lost, and both a vector load on the CPU and a wide load on a GPU
find their bytes aligned (GGUF's 18-byte blocks are 2-byte aligned). q4_0 keeps GGUF's nibble order: byte j of a block
holds weight j in its low half and weight j + 16 in its high half.

This file knows sizes only. It imports nothing of ours; `reference.py` and `cpu/` unpack what it describes.
"""

from __future__ import annotations

from dataclasses import dataclass

SCALE_ALIGN = 16
EXPERT_ALIGN = 64


def align_up(size: int, to: int) -> int:
    """The smallest multiple of `to` that is >= `size`, both in bytes."""
    return -(-size // to) * to


@dataclass(frozen=True, kw_only=True)
class Format:
    """One weight format: `bits` per weight, `block` weights to a scale of `scale_bytes` bytes (0: no scales)."""

    name: str
    code: int  # the same number in table.h of kernels/cpu
    bits: int
    block: int = 1
    scale_bytes: int = 0

    def scales_bytes(self, cols: int) -> int:
        """Bytes of the scales in front of a row of `cols` weights, padding included."""
        return align_up(cols // self.block * self.scale_bytes, SCALE_ALIGN)

    def row_bytes(self, cols: int) -> int:
        """Bytes of one row of `cols` weights."""
        return self.scales_bytes(cols) + cols * self.bits // 8

    def fits(self, cols: int) -> bool:
        """Whether a row of `cols` weights is a whole number of blocks."""
        return cols % self.block == 0


F32 = Format(name="f32", code=0, bits=32)
F16 = Format(name="f16", code=1, bits=16)
BF16 = Format(name="bf16", code=2, bits=16)
Q8_0 = Format(name="q8_0", code=3, bits=8, block=32, scale_bytes=2)
Q4_0 = Format(name="q4_0", code=4, bits=4, block=32, scale_bytes=2)

FORMATS: dict[str, Format] = {f.name: f for f in (F32, F16, BF16, Q8_0, Q4_0)}


@dataclass(frozen=True, kw_only=True)
class ExpertLayout:
    """Where one expert's three matrices lie in its contiguous block.

    block = gate [width, hidden] | up [width, hidden] | down [hidden, width] | pad to 64 B
    """

    format: Format
    hidden: int
    width: int

    @property
    def gate_offset(self) -> int:
        return 0

    @property
    def up_offset(self) -> int:
        return self.width * self.format.row_bytes(self.hidden)

    @property
    def down_offset(self) -> int:
        return 2 * self.up_offset

    @property
    def bytes(self) -> int:
        """Bytes of one expert, padding included: what one activation of it reads."""
        return align_up(self.down_offset + self.hidden * self.format.row_bytes(self.width), EXPERT_ALIGN)
