"""The gated delta rule, token by token: a program has some columns of one head's state, in the registers of one warp.

A column of the state needs no other one, so that no thread waits for another warp, and tokens of a sequence go through
the same registers one after the other; the state is read once and written once. Source of the rule: `recurrent.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import launch
from ..kernel import INTERPRETED, kernel
from ..pointwise import exp
from .slots import rows, sequences, span_of

COLUMNS = 64 if INTERPRETED else 8  # of a program


@triton.jit
def unit(x_ptr, key, ok):
    """A row of a head, brought to length 1."""
    x = tl.load(x_ptr + key, mask=ok, other=0.0)
    return x * tl.rsqrt(tl.sum(x * x, axis=0) + 1e-6)


@kernel()
def _delta_rule(
    q_ptr, k_ptr, v_ptr, decay_ptr, beta_ptr, state_ptr, slots_ptr, starts_ptr, contexts_ptr, y_ptr, q_stride, k_stride,
    v_stride, decay_stride, beta_stride, heads, each, size, v_size, scale,
    KEY: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`each` heads of values share one of keys."""
    sequence, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    first, last, goes_on = span_of(starts_ptr, contexts_ptr, sequence)
    key, column = tl.arange(0, KEY), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    key_ok, column_ok = key < size, column < v_size
    ok = key_ok[:, None] & column_ok[None, :]
    slot = tl.load(slots_ptr + sequence).to(tl.int64)
    places = state_ptr + ((slot * heads + head) * size + key[:, None]) * v_size + column[None, :]
    if first < last:
        state = tl.load(places, mask=ok & goes_on, other=0.0)
        for t in range(first, last):
            token = slot * 0 + t  # int64
            k = unit(k_ptr + token * k_stride + head // each * size, key, key_ok)
            q = unit(q_ptr + token * q_stride + head // each * size, key, key_ok) * scale
            v = tl.load(v_ptr + token * v_stride + head * v_size + column, mask=column_ok, other=0.0)
            decay = exp(tl.load(decay_ptr + token * decay_stride + head))
            beta = tl.load(beta_ptr + token * beta_stride + head)
            state *= decay
            change = (v - tl.sum(state * k[:, None], axis=0)) * beta
            state += k[:, None] * change[None, :]
            y = tl.sum(state * q[:, None], axis=0)
            tl.store(y_ptr + (token * heads + head) * v_size + column, y, mask=column_ok)
        tl.store(places, state, mask=ok)


def delta_rule(
    q_TGk: Tensor,
    k_TGk: Tensor,
    v_THv: Tensor,
    decay_TH: Tensor,
    beta_TH: Tensor,
    state_LHkv: Tensor,
    slots_S: Tensor,
    starts_S1: Tensor,
    contexts_S: Tensor,
) -> Tensor:
    (T, G, size), (_T, H, v), S = q_TGk.shape, v_THv.shape, sequences(slots_S, starts_S1, contexts_S)
    assert k_TGk.shape == q_TGk.shape, f"keys {list(k_TGk.shape)}, queries {list(q_TGk.shape)}"
    assert H % G == 0, f"{H} heads of values on {G}"
    launch.check(state_LHkv, launch.F32, len(state_LHkv), H, size, v)
    strides = launch.heads(q_TGk), launch.heads(k_TGk), launch.heads(v_THv), rows(decay_TH), rows(beta_TH)
    y = torch.empty(T, H, v, dtype=launch.F32, device=v_THv.device)
    _delta_rule[(S * H, launch.cdiv(v, COLUMNS))](
        q_TGk, k_TGk, v_THv, decay_TH, beta_TH, state_LHkv, slots_S, starts_S1, contexts_S, y, *strides, H, H // G,
        size, v, size**-0.5, KEY=launch.pow2(size), COLUMNS=COLUMNS, num_warps=1,
    )  # fmt: skip
    return y
