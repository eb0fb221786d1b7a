"""How many bytes a matrix takes in every format that checkpoints come in, for plans: the engine's own and others'.

Those that the engine packs are counted to the byte as packed (`kernels/formats.py`). The others are blocks of GGUF
and the schemes of quantised safetensors, by their numbers: bits, and what each group of weights adds. Nothing here
packs or unpacks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...kernels import FORMATS, ExpertLayout
from ..architecture.architecture import Experts, Part

# The formats that weights are packed into; those of GGUF are counted as files have them.
PACKED = {name: FORMATS[name] for name in ("f32", "f16", "bf16", "q8_0", "q4_0")}


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """`block` weights of a row take `block_bytes`; `tile` (rows and columns) adds `tile_bytes` for each tile, a row
    `row_bytes`, a column `column_bytes`."""

    name: str
    block: int
    block_bytes: float
    tile: int = 0
    tile_bytes: int = 0
    row_bytes: float = 0
    column_bytes: int = 0

    @property
    def bytes_per_weight(self) -> float:
        """Of whole blocks, without padding."""
        return self.block_bytes / self.block

    def bytes(self, rows: int, cols: int) -> int:
        """Bytes of a matrix; a last block that is not full counts whole."""
        if self.name in PACKED:
            return rows * PACKED[self.name].row_bytes(cols)
        tiles = math.ceil(rows / self.tile) * math.ceil(cols / self.tile) * self.tile_bytes if self.tile else 0
        blocks = math.ceil(rows * math.ceil(cols / self.block) * self.block_bytes)
        return blocks + tiles + math.ceil(rows * self.row_bytes) + cols * self.column_bytes

    def part_bytes(self, part: Part) -> int:
        """Bytes of a tensor; float32 where it is never quantised."""
        return 4 * part.elements if part.plain else self.bytes(part.rows, part.cols)

    def expert_bytes(self, experts: Experts) -> int:
        """Bytes of one expert; in the engine's formats with the padding of its block."""
        if self.name in PACKED and experts.matrices == 3:
            layout = ExpertLayout(format=PACKED[self.name], hidden=experts.hidden, width=experts.width)
            return layout.bytes + 4 * experts.bias
        return sum(map(self.part_bytes, experts.parts()))


def _blocks(name: str, block: int, size: float) -> Encoding:
    return Encoding(name=name, block=block, block_bytes=size)


ENCODINGS: dict[str, Encoding] = {
    e.name: e
    for e in (
        *(_blocks(f.name, f.block, f.block * f.bits / 8 + f.scales.bytes(f.block)) for f in PACKED.values()),
        # GGUF, by ggml's block structures.
        _blocks("q4_1", 32, 20), _blocks("q5_0", 32, 22), _blocks("q5_1", 32, 24), _blocks("q2_k", 256, 84),
        _blocks("q3_k", 256, 110), _blocks("q4_k", 256, 144), _blocks("q5_k", 256, 176), _blocks("q6_k", 256, 210),
        _blocks("iq4_nl", 32, 18), _blocks("iq4_xs", 256, 136), _blocks("iq3_xxs", 256, 98), _blocks("iq3_s", 256, 110),
        _blocks("iq2_xxs", 256, 66), _blocks("iq2_xs", 256, 74), _blocks("iq2_s", 256, 82), _blocks("iq1_s", 256, 50),
        _blocks("iq1_m", 256, 56), _blocks("tq1_0", 256, 54), _blocks("tq2_0", 256, 66),
        # One shared exponent of 8 bits for 32 weights of 4 or 8 bits.
        _blocks("mxfp4", 32, 17), _blocks("mxfp8", 32, 33),
        # Quantised safetensors: a bf16 scale for 32, or a half and a 4-bit zero point for 128; e4m3 scales for 16.
        _blocks("int4-g32", 32, 18), _blocks("int4-g128", 128, 66.5), _blocks("nvfp4", 16, 9),
        Encoding(name="fp8", block=1, block_bytes=1, tile=128, tile_bytes=4), _blocks("fp8-channel", 1, 1),
        _blocks("int8", 1, 1), _blocks("nf4", 64, 36), _blocks("fp4", 64, 36),
    )
}  # fmt: skip
F32 = ENCODINGS["f32"]


def bits_per_weight(bits: float) -> Encoding:
    """So many bits a weight on average, scales and all."""
    return _blocks(f"{bits:g}bpw", 1, bits / 8)


def by_numbers(
    bits: float, group: int | None, *, scale: float = 2, zero: float | None = None, column: int = 0, kind: str = "int"
) -> Encoding:
    """Weights of so many bits in groups along a row (None: the whole row), each with `scale` bytes and a zero point of
    `zero` bytes (None: as many bits as a weight); `column` bytes a column."""
    beside = scale + (bits / 8 if zero is None else zero)
    if group is None:
        return Encoding(name=f"{kind}{bits:g}", block=1, block_bytes=bits / 8, row_bytes=beside, column_bytes=column)
    return Encoding(
        name=f"{kind}{bits:g}-g{group}", block=group, block_bytes=group * bits / 8 + beside, column_bytes=column
    )
