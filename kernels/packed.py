"""Packed weights as the ops take them: a `Matrix`, several `Stacked`, an `Mlp`, or the `ExpertBank` of one layer; the
norms of some layers' `Tail` go with them.

They are a `Format` and a tensor of bytes; none says on which device the bytes lie, nor how they are unpacked. What a
backend is told of one it checks at the first use and keeps in `native`, under its name: in a decode step, where all
caches are full of weights, asking tensors for it again took as long as the call itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .formats import FORMATS, PARTS, ExpertLayout, Format, Part
from .recipes import SWIGLU, Activation

PAGE = 4096
TORCH_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
FORMAT_OF_DTYPE = {dtype: name for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True)
class Matrix:
    """A packed matrix [rows, cols]; `data` is uint8 [rows, format.row_bytes(cols)], contiguous."""

    format: Format
    rows: int
    cols: int
    data: Tensor
    native: dict[str, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    @classmethod
    def empty(cls, format: Format, rows: int, cols: int, device: str = "cpu") -> Matrix:
        """An uninitialised matrix; on the `meta` device it has sizes and takes no memory."""
        return cls(format, rows, cols, torch.empty(rows, format.row_bytes(cols), dtype=torch.uint8, device=device))

    @classmethod
    def plain(cls, values_RC: Tensor) -> Matrix:
        """A view of a float32, float16 or bfloat16 tensor [rows, cols] as a matrix: nothing is copied."""
        rows, cols = values_RC.shape
        format = FORMATS[FORMAT_OF_DTYPE[values_RC.dtype]]
        return cls(format, rows, cols, values_RC.contiguous().view(torch.uint8).view(rows, -1))

    @property
    def nbytes(self) -> int:
        return self.rows * self.format.row_bytes(self.cols)

    def slice_rows(self, start: int, stop: int) -> Matrix:
        """Rows [start, stop) as a view."""
        return Matrix(self.format, stop - start, self.cols, self.data[start:stop])


@dataclass(frozen=True)
class Stacked:
    """Matrices with the same columns, one below the other, each in a format of its own; neighbours in one format are
    one matrix, so that they are one pass over memory."""

    parts: tuple[Matrix, ...]
    native: dict[str, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    @classmethod
    def empty(cls, formats: Sequence[Format], rows: Sequence[int], cols: int, device: str = "cpu") -> Stacked:
        """Uninitialised matrices of so many rows each."""
        runs: list[tuple[Format, int]] = []
        for format, count in zip(formats, rows, strict=True):
            if runs and runs[-1][0] is format:
                runs[-1] = format, runs[-1][1] + count
            else:
                runs.append((format, count))
        return cls(tuple(Matrix.empty(format, count, cols, device) for format, count in runs))

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def cols(self) -> int:
        return self.parts[0].cols

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def slice_rows(self, start: int, stop: int) -> Matrix:
        """Rows [start, stop), all of one part, as a view."""
        first = 0
        for part in self.parts:
            if start < first + part.rows:
                assert stop <= first + part.rows, f"rows {start} to {stop} lie in several matrices"
                return part.slice_rows(start - first, stop - first)
            first += part.rows
        raise AssertionError(f"rows {start} to {stop} of {self.rows}")


@dataclass(frozen=True)
class ExpertBank:
    """Routed experts of one layer: `data` is uint8 [experts, layout.bytes], contiguous, one block an expert. among: how
    many the layer has, of which these are some; 0: these are all. Kernels tell by it how many tokens meet an expert."""

    layout: ExpertLayout
    data: Tensor
    among: int = 0
    native: dict[str, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    @classmethod
    def empty(cls, layout: ExpertLayout, experts: int, device: str = "cpu") -> ExpertBank:
        """An uninitialised bank whose first block starts on a 64-byte boundary; `meta` takes no memory."""
        return cls(layout, torch.empty(experts, layout.bytes, dtype=torch.uint8, device=device))

    @classmethod
    def on_a_page(cls, layout: ExpertLayout, experts: int) -> ExpertBank:
        """The same in RAM, the first block on a page: where blocks are whole pages, a file can be read right into
        them."""
        size = experts * layout.bytes
        memory = torch.empty(size + PAGE, dtype=torch.uint8)
        first = -memory.data_ptr() % PAGE
        return cls(layout, memory[first : first + size].view(experts, layout.bytes))

    @property
    def experts(self) -> int:
        return self.data.shape[0]

    @property
    def nbytes(self) -> int:
        return self.experts * self.layout.bytes

    def matrix(self, expert: int, part: Part) -> Matrix:
        """One matrix of one expert as a view: gate and up [width, hidden], down [hidden, width]."""
        layout, (rows, cols) = self.layout, self.layout.shape(part)
        start = layout.offset(part)
        data = self.data[expert, start : start + layout.part_bytes(part)].view(rows, -1)
        return Matrix(layout.of(part), rows, cols, data)

    def bias(self, expert: int, part: Part) -> Tensor | None:
        """The bias of one matrix of one expert as a view, float32 [rows]; None: there is none."""
        layout = self.layout
        if not layout.biased:
            return None
        start = layout.bias_offset + 4 * layout.width * PARTS.index(part)
        return self.data[expert, start : start + 4 * layout.shape(part)[0]].view(torch.float32)


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """A dense or shared MLP: `gate_up` [2 * width, hidden] (gate rows first), or [width, hidden] where the activation
    has no gate, `down` [hidden, width]."""

    gate_up: Stacked
    down: Matrix
    activation: Activation = SWIGLU


@dataclass(frozen=True, kw_only=True)
class GatedMixing:
    """The gates of a part of a layer on `m` residual streams, float32; see `residual/gated.py`."""

    down: Matrix  # [rank, m D]
    up: Matrix  # [m D, rank]
    inject: Matrix | None  # [m, m D]; None: nothing is given back


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """What states of a residual stream fit to, for a part of a layer, float32 [D]: by, times norm where there is
    one."""

    by: Tensor
    norm: Tensor | None

    @property
    def whole(self) -> Tensor:
        """float32 [D]."""
        return self.by if self.norm is None else self.by * self.norm


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """What a part of a layer makes the weights of `m` residual streams with; see `residual/streams.py`. Behind the last
    layer they are m, of what is taken alone, with one scale."""

    fn: Matrix  # float32 [(2 + m) m, m D]: what the part takes of each stream, gives to each, and how they mix
    base: Tensor  # float32 [(2 + m) m]
    scale: Tensor  # float32 [3]


@dataclass(frozen=True, kw_only=True)
class Around:
    """What is around routed experts that work on L dims, fewer than those of a hidden state. norm: of what they give,
    float32 [L]; None: there is none."""

    into: Matrix  # [L, D]
    back: Matrix  # [D, L]
    norm: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Tail:
    """The end of a layer whose MLP and experts are normed each for itself: norms, float32 [D] all, in front of the MLP
    (the experts' is the block's `post_norm`), behind it, behind the experts, and behind the sum of both. With that sum
    in it the residual stream is multiplied by `scale`, float32 [1]."""

    mlp_in: Tensor
    mlp_out: Tensor
    experts_out: Tensor
    out: Tensor
    scale: Tensor
