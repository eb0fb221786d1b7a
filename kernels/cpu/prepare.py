"""What the C++ kernels are told of tensors: addresses and sizes under their names, checked once and kept in `native`.

They hold for any context: a context says how ops compute, these say on what. A wrong shape, dtype or stride is our own
mistake, hence `assert`, with the names of `reference.py`.
"""

from __future__ import annotations

from functools import cache as cache_of_values
from typing import Any

import torch
from torch import Tensor

from .. import _cpu
from ..blocks.cache_rows import Q8Rows, Rows
from ..formats import FORMATS
from ..packed import ExpertBank, Matrix, Stacked
from ..recipes import Activation

F32, I32, I64, U8 = torch.float32, torch.int32, torch.int64, torch.uint8
CACHE_CODES = {torch.float32: FORMATS["f32"].code, torch.bfloat16: FORMATS["bf16"].code}
NAME = "cpu"  # under which it is kept


def at(x: Tensor, dtype: torch.dtype, *shape: int) -> int:
    """The address of a contiguous tensor of this dtype and shape."""
    assert x.dtype == dtype, f"{x.dtype}, not {dtype}"
    assert x.shape == shape, f"{list(x.shape)}, not {list(shape)}"
    assert x.is_contiguous(), f"strides {x.stride()} of {list(shape)}"
    return x.data_ptr()


def heads(x_TNd: Tensor) -> tuple[int, int]:
    """Address and stride of float32 [T, N, d]: heads side by side, any stride from token to token."""
    _T, N, d = x_TNd.shape
    step = x_TNd.stride()
    assert x_TNd.dtype == F32, f"{x_TNd.dtype}"
    assert d == 1 or step[2] == 1, f"strides {step} of {list(x_TNd.shape)}"
    assert N == 1 or step[1] == d, f"strides {step} of {list(x_TNd.shape)}"
    return x_TNd.data_ptr(), step[0]


def head_rows(x_TNd: Tensor) -> dict[str, int]:
    """float32 [T, N, d], any stride from token to token and from head to head."""
    T, N, d = x_TNd.shape
    step = x_TNd.stride()
    assert x_TNd.dtype == F32, f"{x_TNd.dtype}"
    assert d == 1 or step[2] == 1, f"strides {step} of {list(x_TNd.shape)}"
    return {"x": x_TNd.data_ptr(), "token_stride": step[0], "head_stride": step[1], "tokens": T, "heads": N}


def rows(x_TC: Tensor) -> tuple[int, int]:
    """Address and stride of float32 [T, C], any stride from token to token."""
    assert x_TC.dtype == F32, f"{x_TC.dtype}"
    assert x_TC.shape[1] == 1 or x_TC.stride(1) == 1, f"strides {x_TC.stride()}"
    return x_TC.data_ptr(), x_TC.stride(0)


def sequences(slots_S: Tensor, starts_S1: Tensor, contexts_S: Tensor) -> dict[str, int]:
    """The sequences of a pass, and their slots of state."""
    (S,) = slots_S.shape
    starts, contexts = at(starts_S1, I32, S + 1), at(contexts_S, I32, S)
    return {"slots": at(slots_S, I32, S), "starts": starts, "contexts": contexts, "sequences": S}


def matrix(it: Matrix) -> Any:
    return it.native.get(NAME) or _matrix(it)


def _matrix(it: Matrix) -> Any:
    data = at(it.data, U8, it.rows, it.format.row_bytes(it.cols))
    it.native[NAME] = _cpu.Matrix(format=it.format.code, rows=it.rows, cols=it.cols, data=data)
    return it.native[NAME]


def stacked(it: Stacked) -> Any:
    return it.native.get(NAME) or _stacked(it)


def _stacked(it: Stacked) -> Any:
    it.native[NAME] = _cpu.Rows(parts=[matrix(part) for part in it.parts])
    return it.native[NAME]


@cache_of_values
def activation(it: Activation) -> Any:
    return _cpu.Activation(
        alpha=it.alpha,
        offset=it.offset,
        limit=it.limit,
        cubic=it.cubic,
        bend=it.bend,
        bend_up=it.bend_up,
        late=it.late,
        gated=it.gated,
    )


def bank(it: ExpertBank) -> Any:
    return it.native.get(NAME) or _bank(it)


def _bank(it: ExpertBank) -> Any:
    lay = it.layout
    for part in lay.parts:
        form, (_, cols) = lay.of(part), lay.shape(part)
        assert form.fits(cols), f"rows of {cols} weights in {form.name}"
    assert lay.activation.gated or not lay.biased, "biases of experts without a gate"
    *_, up, down = lay.formats
    gate = lay.formats[0]  # without a gate: `up`, for which activations are prepared
    assert gate.activations == up.activations, f"gate in {gate.name}, up in {up.name}"
    it.native[NAME] = _cpu.Bank(
        gate=gate.code,
        up=up.code,
        down=down.code,
        experts=it.experts,
        hidden=lay.hidden,
        width=lay.width,
        bytes=lay.bytes,
        bias_offset=lay.bias_offset if lay.biased else 0,
        activation=activation(lay.activation),
        weighs_input=lay.weighs_input,
        data=at(it.data, U8, it.experts, lay.bytes),
    )
    return it.native[NAME]


def cache(k_PGBd: Rows, v_PGBd: Rows) -> Any:
    """Keys lie side by side; values are any view of rows [P, G, B, v], such as the first numbers of keys."""
    if isinstance(k_PGBd, Q8Rows):
        return _q8_cache(k_PGBd, v_PGBd)
    assert isinstance(v_PGBd, Tensor), "values in q8_0 of keys that are not"
    _P, G, B, d = k_PGBd.shape
    page, plane, row, step = v_PGBd.stride()
    assert v_PGBd.shape[:3] == k_PGBd.shape[:3], f"values {list(v_PGBd.shape)} of keys {list(k_PGBd.shape)}"
    assert v_PGBd.dtype == k_PGBd.dtype, f"values {v_PGBd.dtype} of keys {k_PGBd.dtype}"
    assert step == 1 or v_PGBd.shape[3] == 1, f"strides {v_PGBd.stride()} of {list(v_PGBd.shape)}"
    size, address = v_PGBd.dtype.itemsize, v_PGBd.data_ptr()
    values = _cpu.Values(d=v_PGBd.shape[3], row=row * size, plane=plane * size, page=page * size, data=address)
    keys = at(k_PGBd, k_PGBd.dtype, *k_PGBd.shape)
    return _cpu.Cache(format=CACHE_CODES[k_PGBd.dtype], groups=G, page_keys=B, d=d, k=keys, values=values)


def _q8_cache(k_PGBd: Q8Rows, v_PGBv: Rows) -> Any:
    """The same of q8_0, where a number is a byte; C++ knows where scales lie."""
    assert isinstance(v_PGBv, Q8Rows), "keys in q8_0 of values that are not"
    assert k_PGBd.shape[:3] == v_PGBv.shape[:3], f"values {list(v_PGBv.shape)} of keys {list(k_PGBd.shape)}"
    assert k_PGBd.width == k_PGBd.row, f"keys of {k_PGBd.width} numbers in rows of {k_PGBd.row}"
    for rows in (k_PGBd, v_PGBv):
        at(rows.planes, U8, *rows.planes.shape)
    (_P, G, B, d), plane = k_PGBd.shape, v_PGBv.planes.shape[2]
    address = v_PGBv.planes.data_ptr()
    values = _cpu.Values(d=v_PGBv.width, row=v_PGBv.row, plane=plane, page=G * plane, data=address)
    keys = k_PGBd.planes.data_ptr()
    return _cpu.Cache(format=FORMATS["q8_0"].code, groups=G, page_keys=B, d=d, k=keys, values=values)


def cache_to_write(k_PGBd: Rows, v_PGBv: Rows) -> Any:
    """Keys and values that the C++ writes: rows of either side by side."""
    if isinstance(v_PGBv, Q8Rows):
        assert v_PGBv.width == v_PGBv.row, f"values of {v_PGBv.width} numbers in rows of {v_PGBv.row}"
    else:
        at(v_PGBv, v_PGBv.dtype, *v_PGBv.shape)
    return cache(k_PGBd, v_PGBv)


def window(length: int | None) -> int:
    """How many keys a query sees; None: all."""
    assert length is None or length > 0, f"a window of {length}"
    return int(_cpu.NO_WINDOW) if length is None else min(length, int(_cpu.NO_WINDOW))


def chunk(length: int | None) -> int:
    """Of how many positions a chunk is that attention keeps to; None: there are none."""
    assert length is None or length > 0, f"chunks of {length}"
    return length or 0


def sinks(sinks_N: Tensor | None, heads: int) -> int:
    return 0 if sinks_N is None else at(sinks_N, F32, heads)


def rope(cos_Pr: Tensor, sin_Pr: Tensor, d: int) -> Any:
    """The turns of heads of d values."""
    P, r = cos_Pr.shape
    assert 2 * r <= d, f"{r} pairs in {d} values"
    return _cpu.Rope(r=r, cos=at(cos_Pr, F32, P, r), sin=at(sin_Pr, F32, P, r))


def norm(weight: Tensor | None, d: int, heads: int) -> Any:
    """A norm over each head, or over all of them; None: none."""
    if weight is None:
        return _cpu.HeadNorm(weight=0, size=0)
    assert len(weight) in (d, heads * d), f"a norm of {len(weight)} for {heads} heads of {d}"
    return _cpu.HeadNorm(weight=at(weight, F32, len(weight)), size=len(weight))


def limit(clip: float | None) -> float:
    """What values are clipped to, infinity where they are not."""
    return float("inf") if clip is None else clip


def bias(it: Tensor | None, of: Matrix | Stacked) -> int:
    return 0 if it is None else at(it, F32, of.rows)
