"""silu of a causal convolution of each channel over the last few tokens of its sequence.

Tokens do not wait for each other: a program has one token and a block of channels, and takes what came before from the
rows of this pass and, near the begin of a sequence, from its state. What the state is then, a second launch writes; in
decode, where a token is alone with its state, the first one does.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import launch
from ..cores.sequences import sequence_of
from ..kernel import kernel
from ..pointwise import silu
from .slots import rows, sequences, span_of

BLOCK = 256  # channels of a program


@triton.jit
def input_at(
    x_ptr, state_ptr, place, channel, ok, first, goes_on, x_stride, slot, channels, PAST: tl.constexpr
):  # fmt: skip
    """Inputs of channels at places of a sequence in this pass, counted from its first token; below 0: before it."""
    now = tl.load(x_ptr + (first + place).to(tl.int64) * x_stride + channel, mask=ok & (place >= 0), other=0.0)
    kept = state_ptr + (slot * channels + channel) * PAST + PAST + place
    return tl.where(place >= 0, now, tl.load(kept, mask=ok & (place < 0) & goes_on, other=0.0))


@kernel("sequences")
def _short_conv(
    x_ptr, w_ptr, state_ptr, slots_ptr, starts_ptr, contexts_ptr, y_ptr, x_stride, channels, sequences,
    TAPS: tl.constexpr, TAPS_2: tl.constexpr, SEQUENCES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """SEQUENCES 0: a token of each sequence, whose state is brought up to date."""
    PAST: tl.constexpr = TAPS - 1
    token = tl.program_id(0)
    sequence = sequence_of(token, starts_ptr, sequences, SEQUENCES)
    first, _last, goes_on = span_of(starts_ptr, contexts_ptr, sequence)
    slot = tl.load(slots_ptr + sequence).to(tl.int64)
    channel = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[:, None]
    tap = tl.arange(0, TAPS_2)[None, :]
    ok = (channel < channels) & (tap < TAPS)
    place = token - first - PAST + tap
    x = input_at(x_ptr, state_ptr, place, channel, ok, first, goes_on, x_stride, slot, channels, PAST)
    w = tl.load(w_ptr + channel * TAPS + tap, mask=ok, other=0.0)
    y = tl.sum(x * w, axis=1)[:, None]
    tl.store(y_ptr + token.to(tl.int64) * channels + channel, silu(y), mask=channel < channels)
    if SEQUENCES == 0:
        tl.debug_barrier()  # several threads may have read an input that another one overwrites
        tl.store(state_ptr + (slot * channels + channel) * PAST + tap - 1, x, mask=ok & (tap > 0))


@kernel()
def _keep_inputs(
    x_ptr, state_ptr, slots_ptr, starts_ptr, contexts_ptr, x_stride, channels,
    PAST: tl.constexpr, PAST_2: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A sequence's last inputs as its state."""
    first, last, goes_on = span_of(starts_ptr, contexts_ptr, tl.program_id(0))
    slot = tl.load(slots_ptr + tl.program_id(0)).to(tl.int64)
    channel = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[:, None]
    number = tl.arange(0, PAST_2)[None, :]
    ok = (channel < channels) & (number < PAST) & (first < last)
    place = last - first - PAST + number
    x = input_at(x_ptr, state_ptr, place, channel, ok, first, goes_on, x_stride, slot, channels, PAST)
    tl.debug_barrier()
    tl.store(state_ptr + (slot * channels + channel) * PAST + number, x, mask=ok)


def short_conv(
    x_TC: Tensor, weight_CW: Tensor, state_LCw: Tensor, slots_S: Tensor, starts_S1: Tensor, contexts_S: Tensor
) -> Tensor:
    (T, C), (_C, W), S = x_TC.shape, weight_CW.shape, sequences(slots_S, starts_S1, contexts_S)
    assert W > 1, f"{W} taps"
    launch.check(weight_CW, launch.F32, C, W)
    launch.check(state_LCw, launch.F32, len(state_LCw), C, W - 1)
    y, stride, blocks = torch.empty(T, C, dtype=launch.F32, device=x_TC.device), rows(x_TC), launch.cdiv(C, BLOCK)
    where = slots_S, starts_S1, contexts_S
    _short_conv[(T, blocks)](
        x_TC, weight_CW, state_LCw, *where, y, stride, C, S,
        TAPS=W, TAPS_2=launch.pow2(W), SEQUENCES=0 if T == S else launch.places(S), BLOCK=BLOCK,
    )  # fmt: skip
    if T != S:
        _keep_inputs[(S, blocks)](
            x_TC, state_LCw, *where, stride, C, PAST=W - 1, PAST_2=launch.pow2(W - 1), BLOCK=BLOCK
        )  # fmt: skip
    return y
