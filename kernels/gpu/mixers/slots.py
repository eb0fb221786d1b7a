"""Recurrent layers: each sequence has a slot of state, and one that begins with this pass starts from zeros."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .. import launch


@triton.jit
def span_of(starts_ptr, contexts_ptr, sequence):
    """The tokens [first, last) of a sequence, and whether it goes on from a state."""
    first, last = tl.load(starts_ptr + sequence), tl.load(starts_ptr + sequence + 1)
    return first, last, tl.load(contexts_ptr + sequence) > last - first


def sequences(slots_S: Tensor, starts_S1: Tensor, contexts_S: Tensor) -> int:
    """How many there are; what is said of them is checked."""
    S = len(slots_S)
    for tensor, count in ((slots_S, S), (starts_S1, S + 1), (contexts_S, S)):
        launch.check(tensor, launch.I32, count)
    return S


def rows(x_TC: Tensor) -> int:
    """The stride from row to row of float32 [T, C]."""
    assert x_TC.dtype == launch.F32, f"{x_TC.dtype}"
    assert x_TC.shape[1] == 1 or x_TC.stride(1) == 1, f"strides {x_TC.stride()} of {list(x_TC.shape)}"
    return int(x_TC.stride(0))
