"""How many bytes a matrix takes in every format that checkpoints come in, for plans: the engine's own and others'.

The engine's formats are those of `kernels/formats.py`: in memory a row takes what it takes there, to the byte, in a
file what GGUF's blocks take. The others are blocks of GGUF and the schemes of quantised safetensors, by their numbers:
bits, and what each group of weights adds; they are counted in memory as in a file. Nothing here packs or unpacks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...kernels import FORMATS, ExpertLayout, Format
from ..files.gguf_header import TYPES

# What takes the place of formats of 256 weights in rows that are no multiple of them.
SMALLER_BLOCKS = {
    "q2_k": "iq4_nl",
    "q3_k": "iq4_nl",
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
    **dict.fromkeys(("iq4_xs", "iq3_s", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s"), "iq4_nl"),
}


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """In a file `block` weights of a row take `block_bytes`; `tile` (rows and columns) adds `tile_bytes` for each tile,
    a row `row_bytes`, a column `column_bytes`."""

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

    @property
    def packed(self) -> Format | None:
        """The engine's format of that name; None: it has none."""
        return FORMATS.get(self.name)

    def bytes(self, rows: int, cols: int) -> int:
        """Bytes of a matrix in memory: packed as the engine packs it, or as in a file where it has no such format."""
        return self.stored_bytes(rows, cols) if self.packed is None else rows * self.packed.row_bytes(cols)

    def stored_bytes(self, rows: int, cols: int) -> int:
        """Bytes of a matrix in a file; a last block that is not full counts whole."""
        tiles = math.ceil(rows / self.tile) * math.ceil(cols / self.tile) * self.tile_bytes if self.tile else 0
        blocks = math.ceil(rows * math.ceil(cols / self.block) * self.block_bytes)
        return blocks + tiles + math.ceil(rows * self.row_bytes) + cols * self.column_bytes

    def fitting(self, cols: int) -> Encoding:
        """This one, or the one of smaller blocks that takes its place in rows of `cols` weights."""
        name = SMALLER_BLOCKS.get(self.name)
        return self if name is None or cols % self.block == 0 else ENCODINGS[name]


def expert_layout(encodings: list[Encoding], hidden: int, width: int, biases: int = 0) -> ExpertLayout | None:
    """How the engine packs an expert of gate, up and down in these, and so many biases; None where it has no format of
    that name, or no place for them."""
    formats = [encoding.packed for encoding in encodings]
    if len(formats) != 3 or None in formats or biases not in (0, 2 * width + hidden):
        return None
    gate, up, down = formats
    assert gate is not None, "checked above"
    return ExpertLayout(format=gate, up_format=up, down_format=down, hidden=hidden, width=width, biased=biases > 0)


def _blocks(name: str, block: int, size: float) -> Encoding:
    return Encoding(name=name, block=block, block_bytes=size)


WEIGHTS = {name for name, _, _ in TYPES.values()} - {"Q8_1", "Q8_K", "NVFP4", "F64", "I8", "I16", "I32", "I64"}
ENCODINGS: dict[str, Encoding] = {
    e.name: e
    for e in (
        # GGUF's, by ggml's block structures: the engine's own formats are among them.
        *(_blocks(name.lower(), block, size) for name, block, size in TYPES.values() if name in WEIGHTS),
        # One shared exponent of 8 bits for 32 weights of 8 bits.
        _blocks("mxfp8", 32, 33),
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
