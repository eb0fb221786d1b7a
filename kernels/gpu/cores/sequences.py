"""Which sequence of a batch a token is of: sequences differ in length, and the host does not look at their lengths."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sequence_of(token, starts_ptr, sequences, SEQUENCES: tl.constexpr):
    """The number of the sequence, of at most SEQUENCES; 0: each has one token."""
    sequence = token
    if SEQUENCES > 0:
        every = tl.arange(0, SEQUENCES)
        ends = tl.load(starts_ptr + 1 + every, mask=every < sequences, other=2147483647)
        sequence = tl.sum((ends <= token).to(tl.int32), axis=0)
    return sequence
