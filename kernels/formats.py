"""Weight formats as data: the codes of a weight, the scales of a block, and where both lie in a row.

A format is a kind of codes and a kind of scales, out of two short lists: a new one is a row of the table below.

    codes    an integer of a few bits for each weight, in planes of 1, 2, 4 or 8 bits; it stands for code - offset, or
             for what a table says
    scales   a factor for each 16, 32 or 128 weights, often a unit times a half for more of them; with some, a minimum
             or a zero point besides
    weight   factor * value + minimum; a zero point z is the minimum -factor * z

A row of a matrix is stored on its own, row-major:

    f32 f16 bf16    [ values ]                                       the checkpoint's own bytes
    block formats   [ scales | pad to 16 B | groups of 16 blocks ]   a block is 32 weights along the row

A group holds its planes one after the other, the narrowest first; a plane of k bits holds 4 k bytes a block. Byte B of
a block's plane has weights B, B + 4 k, B + 8 k ... in its fields, the lowest first: a byte of 4-bit codes holds weights
B and B + 16, as in GGUF's q4_0. A last group holds the blocks that are left.

These are the bytes of GGUF's format of the same name in another order: nothing is lost, scales lie side by side, and a
vector load on the CPU and a wide load on a GPU find their bytes aligned. Rows take as many bytes as in a file, but for
padding, and for q3_k and iq4_xs, whose factors of 6 bits take a byte here (4 % and 1.5 % more). Points of a grid (iq1
to iq3) become the codes of their values, of 3 or 4 bits, which takes more bytes than in a file. A minimum that GGUF
subtracts has its half negated.

The last ones hold what quantised safetensors say (`loaders/quantised`), nothing rounded: a scale of a tile, a column or
a tensor is repeated for each 128 weights of a row, a zero point of 4 bits takes a byte.

This file knows sizes only. It imports nothing of ours; `reference.py`, `cpu/` and `gpu/` unpack what it describes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Literal

from .recipes import SWIGLU, Activation

SCALE_ALIGN = 16
EXPERT_ALIGN = 64
BLOCK = 32  # weights
GROUP = 16  # blocks
SUPER = 256  # weights that share a half, where factors are integers
ROW = 1 << 40  # as `shared`: all weights of a row

ScaleKind = Literal[
    "none", "half", "half_min", "half_zero", "power", "byte", "byte16", "six_min", "nibble16_min", "e4m3_16"
]
Half = Literal["f16", "bf16", "f32"]
HALF_BYTES: dict[Half, int] = {"f16": 2, "bf16": 2, "f32": 4}
Part = Literal["gate", "up", "down"]
PARTS: tuple[Part, ...] = ("gate", "up", "down")


def align_up(size: int, to: int) -> int:
    """The smallest multiple of `to` that is >= `size`, both in bytes."""
    return -(-size // to) * to


@dataclass(frozen=True, kw_only=True)
class Scales:
    """How the factors of a row are stored: halves, halves of minimums, units, one after the other.

    per: weights to a factor. shared: weights that share a half, and a factor is a unit times it; 0: a factor is a half
    of its own, or a power of two. has_min: there are minimums, likewise. unit_bytes: of the integers that belong to one
    factor and minimum. gain: what a half counts times, a power of two. half: what a half is. Where `per` is 16, the
    units of the first halves of all blocks come first, then those of the second halves. A last run of weights may be
    shorter than `per`, or than all that share a half.
    """

    kind: ScaleKind
    per: int
    shared: int = 0
    has_min: bool = False
    unit_bytes: float = 0
    gain: float = 1.0
    half: Half = "f16"

    @property
    def half_bytes(self) -> int:
        """Bytes of the halves that belong together."""
        return 0 if self.kind == "power" else HALF_BYTES[self.half] * (2 if self.has_min else 1)

    def halves(self, cols: int) -> int:
        """How many halves a row has, those of minimums not counted."""
        return -(-cols // (self.shared or self.per))

    def runs(self, cols: int) -> int:
        """How many factors a row has."""
        return -(-cols // self.per)

    def bytes(self, cols: int) -> int:
        """Bytes of the scales of a row, without padding."""
        return self.halves(cols) * self.half_bytes + round(self.runs(cols) * self.unit_bytes)


@dataclass(frozen=True, kw_only=True)
class Codes:
    """How the integers of a row are stored: bits of its planes, narrowest first, and what a code stands for: code -
    offset, or table[code]; of 8 bits without a table, a signed number."""

    planes: tuple[int, ...]
    offset: int = 0
    table: tuple[float, ...] = ()

    @property
    def bits(self) -> int:
        return sum(self.planes)

    @property
    def are_floats(self) -> bool:
        """Whether codes are no integers times a constant, so that products need floats."""
        return self.bits == 8 and bool(self.table)


NO_CODES = Codes(planes=())
NO_SCALES = Scales(kind="none", per=1)
HALF = Scales(kind="half", per=32)
HALF_MIN = Scales(kind="half_min", per=32, has_min=True)
POWER = Scales(kind="power", per=32, unit_bytes=1)  # 2^(byte - 128)
BYTE = Scales(kind="byte", per=32, shared=SUPER, unit_bytes=1)  # signed
BYTE16 = Scales(kind="byte16", per=16, shared=SUPER, unit_bytes=1)  # signed
# 6 bits each: a byte a block with the low 4 bits of factor and minimum, then 4 bytes for each 256 weights, of which
# byte i has the high 2 bits of both, of block i in its low half and of block i + 4 in its high half.
SIX_MIN = Scales(kind="six_min", per=32, shared=SUPER, has_min=True, unit_bytes=1.5)
# One byte has both: the factor in its low half, the minimum in its high half.
NIBBLE16_MIN = Scales(kind="nibble16_min", per=16, shared=SUPER, has_min=True, unit_bytes=1)

# Of files whose weights are points of a grid: what is left of the half when the grid's values are integers.
EIGHTH_BYTE, EIGHTH_BYTE16, QUARTER_BYTE = (
    replace(BYTE, gain=1 / 8),
    replace(BYTE16, gain=1 / 8),
    replace(BYTE, gain=1 / 4),
)

# A zero point of a byte: the code that stands for 0.
ZERO = Scales(kind="half_zero", per=32, unit_bytes=1)
ZERO_BF16 = Scales(kind="half_zero", per=32, unit_bytes=1, half="bf16")
ZERO_128 = Scales(kind="half_zero", per=128, unit_bytes=1)
ZERO_128_BF16 = Scales(kind="half_zero", per=128, unit_bytes=1, half="bf16")
HALF_BF16 = Scales(kind="half", per=32, half="bf16")
FLOAT_128 = Scales(kind="half", per=128, half="f32")
# Units are floats of 8 bits, e4m3.
E4M3_16 = Scales(kind="e4m3_16", per=16, shared=ROW, unit_bytes=1, half="f32")


def _e4m3(code: int) -> float:
    """A float of 4 bits of exponent and 3 of mantissa, without infinities: 127 and 255 are NaN."""
    exponent, mantissa, sign = code >> 3 & 15, code & 7, -1.0 if code > 127 else 1.0
    if code & 127 == 127:
        return float("nan")
    return sign * (mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10))


E4M3_VALUES = tuple(_e4m3(code) for code in range(256))
# Where the 16 values of a code are not evenly spaced. Those of e2m1 are doubled: POWER takes the half back, and the
# number of a row of E4M3_16 is stored as half of what it is.
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
# The values that points of a grid have, with their signs; of iq1 those of three levels, an eighth beside them, times 8.
IQ3_S_VALUES = tuple(range(-15, 16, 2))
IQ3_XXS_VALUES = (-62, -52, -44, -36, -28, -20, -12, -4, 4, 12, 20, 28, 36, 44, 52, 62)
IQ2_VALUES = (-43, -25, -8, 8, 25, 43, 0, 0)
IQ1_VALUES = (-9, -7, -1, 1, 7, 9, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Format:
    """One weight format; `code` is the same number in cpu/isa/table.h, `plain_bits` those of a float (0: blocks)."""

    name: str
    code: int
    codes: Codes = NO_CODES
    scales: Scales = NO_SCALES
    plain_bits: int = 0

    @property
    def is_block(self) -> bool:
        """Whether weights are integers with scales; the others are floats."""
        return not self.plain_bits

    @property
    def activations(self) -> str:
        """How a token is made ready for products with it; formats where that is the same can be gate and up."""
        return "int8" if self.is_block and not self.codes.are_floats else self.name

    @property
    def bits(self) -> int:
        """Bits of a weight, scales aside."""
        return self.plain_bits or self.codes.bits

    @property
    def block(self) -> int:
        """Weights of which a row must be a whole number."""
        return max(BLOCK, self.scales.shared % ROW) if self.is_block else 1

    def scales_bytes(self, cols: int) -> int:
        """Bytes of the scales in front of a row of `cols` weights, padding included."""
        return align_up(self.scales.bytes(cols), SCALE_ALIGN) if self.is_block else 0

    def row_bytes(self, cols: int) -> int:
        """Bytes of one row of `cols` weights."""
        return self.scales_bytes(cols) + cols * self.bits // 8

    def fits(self, cols: int) -> bool:
        """Whether a row of `cols` weights is a whole number of blocks."""
        return cols % self.block == 0


F32 = Format(name="f32", code=0, plain_bits=32)
F16 = Format(name="f16", code=1, plain_bits=16)
BF16 = Format(name="bf16", code=2, plain_bits=16)
Q8_0 = Format(name="q8_0", code=3, codes=Codes(planes=(8,)), scales=HALF)
Q4_0 = Format(name="q4_0", code=4, codes=Codes(planes=(4,), offset=8), scales=HALF)
Q4_1 = Format(name="q4_1", code=5, codes=Codes(planes=(4,)), scales=HALF_MIN)
Q5_0 = Format(name="q5_0", code=6, codes=Codes(planes=(1, 4), offset=16), scales=HALF)
Q5_1 = Format(name="q5_1", code=7, codes=Codes(planes=(1, 4)), scales=HALF_MIN)
Q2_K = Format(name="q2_k", code=8, codes=Codes(planes=(2,)), scales=NIBBLE16_MIN)
Q3_K = Format(name="q3_k", code=9, codes=Codes(planes=(1, 2), offset=4), scales=BYTE16)
Q4_K = Format(name="q4_k", code=10, codes=Codes(planes=(4,)), scales=SIX_MIN)
Q5_K = Format(name="q5_k", code=11, codes=Codes(planes=(1, 4)), scales=SIX_MIN)
Q6_K = Format(name="q6_k", code=12, codes=Codes(planes=(2, 4), offset=32), scales=BYTE16)
IQ4_NL = Format(name="iq4_nl", code=13, codes=Codes(planes=(4,), table=IQ4_VALUES), scales=HALF)
IQ4_XS = Format(name="iq4_xs", code=14, codes=Codes(planes=(4,), table=IQ4_VALUES), scales=BYTE)
MXFP4 = Format(name="mxfp4", code=15, codes=Codes(planes=(4,), table=E2M1_VALUES), scales=POWER)
IQ3_S = Format(name="iq3_s", code=16, codes=Codes(planes=(4,), table=IQ3_S_VALUES), scales=BYTE)
IQ3_XXS = Format(name="iq3_xxs", code=17, codes=Codes(planes=(4,), table=IQ3_XXS_VALUES), scales=QUARTER_BYTE)
IQ2_XXS = Format(name="iq2_xxs", code=18, codes=Codes(planes=(1, 2), table=IQ2_VALUES), scales=EIGHTH_BYTE)
IQ2_XS = Format(name="iq2_xs", code=19, codes=Codes(planes=(1, 2), table=IQ2_VALUES), scales=EIGHTH_BYTE16)
IQ2_S = replace(IQ2_XS, name="iq2_s")
IQ1_S = Format(name="iq1_s", code=20, codes=Codes(planes=(1, 2), table=IQ1_VALUES), scales=EIGHTH_BYTE)
IQ1_M = Format(name="iq1_m", code=21, codes=Codes(planes=(1, 2), table=IQ1_VALUES), scales=EIGHTH_BYTE16)
FP8 = Format(name="fp8", code=22, codes=Codes(planes=(8,), table=E4M3_VALUES), scales=FLOAT_128)
Q4_0_BF16 = Format(name="q4_0_bf16", code=23, codes=Codes(planes=(4,), offset=8), scales=HALF_BF16)
INT4_G32 = Format(name="int4_g32", code=24, codes=Codes(planes=(4,)), scales=ZERO)
INT4_G32_BF16 = Format(name="int4_g32_bf16", code=25, codes=Codes(planes=(4,)), scales=ZERO_BF16)
INT4_G128 = Format(name="int4_g128", code=26, codes=Codes(planes=(4,)), scales=ZERO_128)
INT4_G128_BF16 = Format(name="int4_g128_bf16", code=27, codes=Codes(planes=(4,)), scales=ZERO_128_BF16)
NVFP4 = Format(name="nvfp4", code=28, codes=Codes(planes=(4,), table=E2M1_VALUES), scales=E4M3_16)

FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4,
        IQ3_S, IQ3_XXS, IQ2_XXS, IQ2_XS, IQ2_S, IQ1_S, IQ1_M,
        FP8, Q4_0_BF16, INT4_G32, INT4_G32_BF16, INT4_G128, INT4_G128_BF16, NVFP4,
    )
}  # fmt: skip


@dataclass(frozen=True)
class KVFormat:
    """What rows of the KV cache are stored as; `sixteen`: bytes of 16 numbers of a row, which is a multiple of `block`.
    q8_0 is that of weights, with a page's scales behind its codes (`blocks/cache_rows.py`)."""

    name: str
    sixteen: int
    block: int = 1

    def bytes(self, numbers: int) -> int:
        """Bytes of so many numbers of whole rows."""
        return numbers * self.sixteen // 16


KV_F32, KV_BF16, KV_Q8_0 = KVFormat("f32", 64), KVFormat("bf16", 32), KVFormat("q8_0", 17, BLOCK)
KV_FORMATS: dict[str, KVFormat] = {f.name: f for f in (KV_F32, KV_BF16, KV_Q8_0)}


@dataclass(frozen=True, kw_only=True)
class ExpertLayout:
    """Where one expert's matrices lie in its contiguous block, each in a format of its own, and what is computed
    between them.

    block = gate [width, hidden] | up [width, hidden] | down [hidden, width] | pad to 64 B
            with biases: | of gate [width] | of up [width] | of down [hidden], float32 | pad to 64 B

    Where the activation is not gated there is no gate. format: of gate, and of the others where nothing else is said.
    weighs_input: a token's weight multiplies what the expert takes of it, not what it gives.
    """

    format: Format
    hidden: int
    width: int
    up_format: Format | None = None
    down_format: Format | None = None
    biased: bool = False
    activation: Activation = SWIGLU
    weighs_input: bool = False

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that there are, in their order."""
        return PARTS if self.activation.gated else PARTS[1:]

    def of(self, part: Part) -> Format:
        """The format of a part."""
        own = {"gate": None, "up": self.up_format, "down": self.down_format}[part]
        return own or self.format

    def shape(self, part: Part) -> tuple[int, int]:
        """Rows and columns of a part."""
        return (self.hidden, self.width) if part == "down" else (self.width, self.hidden)

    def part_bytes(self, part: Part) -> int:
        return self._sizes[part]

    @cached_property  # asked for every part of every expert of a checkpoint
    def _sizes(self) -> dict[Part, int]:
        """Bytes of each part."""
        shapes = {part: self.shape(part) for part in PARTS}
        return {part: rows * self.of(part).row_bytes(cols) for part, (rows, cols) in shapes.items()}

    @property
    def formats(self) -> tuple[Format, ...]:
        """The formats of gate, up and down, of those that there are."""
        return tuple(self.of(part) for part in self.parts)

    @property
    def name(self) -> str:
        """The formats' names, the same ones once: q4_k, or q4_k/q6_k where `down` has another."""
        return "/".join(dict.fromkeys(format.name for format in self.formats))

    def offset(self, part: Part) -> int:
        """Bytes from the begin of an expert to a part."""
        return self._offsets[part]

    @cached_property
    def _offsets(self) -> dict[Part, int]:
        sizes = [self._sizes[part] for part in self.parts]
        return dict(zip(self.parts, accumulate(sizes, initial=0), strict=False))

    @cached_property  # asked for every layer of every pass
    def bytes(self) -> int:
        """Bytes of one expert, padding included: what one activation of it reads."""
        return self.bias_offset + align_up(self.bias_bytes, EXPERT_ALIGN)

    @property
    def bias_offset(self) -> int:
        """Bytes from the begin of an expert to its biases, or to its end where it has none."""
        return align_up(sum(map(self.part_bytes, self.parts)), EXPERT_ALIGN)

    @property
    def bias_bytes(self) -> int:
        return 4 * (2 * self.width + self.hidden) if self.biased else 0

    @property
    def bytes_by_format(self) -> dict[str, int]:
        """`bytes` by the names of the formats; what is behind the last part counts as its own."""
        found = dict.fromkeys((format.name for format in self.formats), 0)
        for part in self.parts:
            found[self.of(part).name] += self.part_bytes(part)
        found[self.of("down").name] += self.bytes - sum(found.values())
        return found
