"""Where the codes of a block lie in its row: in groups of 16 blocks, each plane of a group by itself, the narrowest
first (`kernels/formats.py`)."""

from __future__ import annotations

import triton
import triton.language as tl

from .constants import about


@triton.jit
def planes(block, blocks, FORMAT: tl.constexpr):
    """Where the codes of blocks of a row begin, in units of 4 bytes from its first code: in the plane with the lower
    bits, and in the other one. `blocks` are those of a row: a last group may be smaller."""
    LOW: tl.constexpr = about(FORMAT, "low")
    HIGH: tl.constexpr = about(FORMAT, "high")
    if HIGH == 0:
        return block * LOW, block * 0
    else:
        group = block // 16
        inside = block - group * 16
        high = group * (16 * (LOW + HIGH))
        low = high + tl.minimum(blocks - group * 16, 16) * HIGH
        return low + inside * LOW, high + inside * HIGH
