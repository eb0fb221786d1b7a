"""What the wrappers of this folder share: checks of tensors, packed weights as addresses and strides, block sizes.

A wrong shape, dtype or stride is our own mistake, hence `assert`, as in `kernels/cpu`. Nothing here reads a value of a
tensor, so no wrapper waits for the GPU, and every grid follows from shapes alone: all of it can be captured in a graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import torch
from torch import Tensor
from triton.runtime import driver

from ..formats import Format
from ..packed import TORCH_DTYPES, Matrix
from .kernel import INTERPRETED

# How a matrix product is computed: bf16 operands on tensor cores, or float32 (three tf32 products). Sums are float32.
Product = Literal["bf16", "f32"]

F32, I32, I64, U8 = torch.float32, torch.int32, torch.int64, torch.uint8


@dataclass(frozen=True)
class Stored:
    """Packed rows of `cols` weights as a kernel sees them, `stride` from row to row, in elements of `values`.

    Plain formats: an element is a weight. There are no scales; `scales` is then `values` again, and not read.
    Block formats: `values` are bytes from the first code of the first row on, `words` the same bytes as int32, four
    each, `scales` bytes from the begin of the row on; offsets are in bytes. `granules` are constants of kernels that
    read rows 16 bytes a thread: WIDTH weights each, and whether all are WHOLE and begin at multiples of 16 bytes.
    """

    values: Tensor
    words: Tensor
    scales: Tensor
    cols: int
    stride: int
    granules: dict[str, int]

    @property
    def whole(self) -> int:
        """Whether rows begin at multiples of 16 bytes."""
        return self.granules["WHOLE"]


def stored(format: Format, data: Tensor, cols: int, start: int = 0) -> Stored:
    """Rows of `cols` weights in uint8 `data`, from its byte `start` on (in each block, if it has blocks)."""
    row, width = format.row_bytes(cols), weights_of_granule(format)
    data = data[..., start:]
    if format.name in TORCH_DTYPES:
        values = data.view(TORCH_DTYPES[format.name])
        whole = cols % width == 0 and start % 16 == 0
        return Stored(values, values, values, cols, row // values.element_size(), dict(WIDTH=width, WHOLE=whole))
    scales, narrow = format.scales_bytes(cols), sum(format.codes.planes[:-1])
    whole = cols % width == 0 and start % 16 == row % 16 == cols * narrow // 8 % 16 == 0
    values, words = data[..., scales:], data.view(I32)[..., scales // 4 :]
    return Stored(values, words, data, cols, row, dict(WIDTH=width, WHOLE=whole))


def packed(m: Matrix) -> Stored:
    """A whole matrix, looked at once."""
    found: Stored | None = m.native.get("gpu")
    if found is None:
        check(m.data, U8, m.rows, m.format.row_bytes(m.cols))
        found = m.native["gpu"] = stored(m.format, m.data, m.cols)
    return found


def weights_of_granule(format: Format) -> int:
    """Weights in 16 bytes, of codes in two planes in 16 bytes of the wider one: a thread's part of a row."""
    return 128 // (format.codes.planes[-1] if format.is_block else format.bits)


def one_token(rows: int, granules: Mapping[str, int]) -> dict[str, int]:
    """The tile of a program for one token: rows, which share the activations that a thread loads, and granules, one a
    thread; of large granules fewer, since rows are short. The interpreter runs programs one after another, so it gets
    fewer and larger ones."""
    warps = 1 if granules["WIDTH"] == 64 else 2
    return dict(ROWS=8 * rows if INTERPRETED else rows, GRANULES=32 * warps, num_warps=warps)


def product_of(format: Format) -> Product:
    """How products with weights of this format are computed: float32 ones lose nothing, since a router is float32 for a
    reason. The interpreter's bf16 arithmetic is wrong: float32 there, too."""
    return "bf16" if (format.is_block or format.name == "bf16") and not INTERPRETED else "f32"


def operand(x: Tensor, product: Product) -> Tensor:
    """Activations as the product takes them: a copy in bf16, or themselves."""
    return x.to(torch.bfloat16) if product == "bf16" else x


def check(x: Tensor, dtype: torch.dtype, *shape: int) -> Tensor:
    """The tensor itself, if it is contiguous and of this dtype and shape."""
    assert x.dtype == dtype, f"{x.dtype}, not {dtype}"
    assert x.shape == shape, f"{list(x.shape)}, not {list(shape)}"
    assert x.is_contiguous(), f"strides {x.stride()} of {list(shape)}"
    return x


def heads(x_TNd: Tensor) -> int:
    """The stride from token to token of float32 [T, N, d], whose heads lie side by side."""
    _T, N, d = x_TNd.shape
    step = x_TNd.stride()
    assert x_TNd.dtype == F32, f"{x_TNd.dtype}"
    assert d == 1 or step[2] == 1, f"strides {step} of {list(x_TNd.shape)}"
    assert N == 1 or step[1] == d, f"strides {step} of {list(x_TNd.shape)}"
    return int(step[0])


@lru_cache
def pow2(n: int, least: int = 1) -> int:
    """The smallest power of two that is >= n and >= `least`: sizes of tiles are powers of two."""
    return max(least, 1 << (n - 1).bit_length())


def places(sequences: int) -> int:
    """How many sequences a kernel has room for that finds each token's own: few variants for all numbers."""
    return 16 if sequences <= 16 else pow2(sequences, 256)


def cdiv(n: int, by: int) -> int:
    """n / by, rounded up."""
    return -(-n // by)


@cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of the GPU, for tensors without memory of the current one; a plausible number where there is none
    (interpreter)."""
    if device.type == "meta" and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    if device.type != "cuda":
        return 64
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def stream(device: torch.device) -> int:
    """The current stream of a GPU, as the driver knows it; 0 where there is no GPU."""
    return int(driver.active.get_current_stream(device.index)) if device.type == "cuda" else 0


def is_captured(device: torch.device) -> bool:
    """Whether the current stream is in the capture of a graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def resident(tile: Mapping[str, int], device: torch.device) -> int:
    """How many programs with such a tile of many tokens a GPU holds at once, by the registers that they take."""
    return (2 if tile["num_warps"] == 8 else 4) * multiprocessors(device)
