"""Experts in a block format as experts in bf16, in a buffer that a few of them fill at a time.

A program has rows of one expert and goes through their columns as the products do (`cores/many.py`): each field of the
bytes of codes is columns of its own, written where they belong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ...formats import FORMATS
from ...scratch import unpacked_experts
from .. import launch
from ..cores.codes import decode
from ..cores.constants import about
from ..cores.many import field, load_codes
from ..cores.scales import scales
from ..kernel import INTERPRETED, kernel
from .blocks import Blocks, Part

PLAIN = (FORMATS["f32" if INTERPRETED else "bf16"],)  # the interpreter's bf16 arithmetic is wrong
ROWS, COLUMNS = 128 if INTERPRETED else 16, 256  # of a program, and of each of its steps


class Run(NamedTuple):
    """Experts `begin` to `end` of a bank; the weights of `blocks` are those from `begin` on."""

    begin: int
    end: int
    blocks: Blocks


@kernel("first")
def _unpack_experts(
    w_ptr, s_ptr, out_ptr, first, rows, cols, stride, block, out_block,
    WHOLE: tl.constexpr, FORMAT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One matrix of the experts from `first` on, one after the other in the second coordinate of programs."""
    LOW: tl.constexpr = about(FORMAT, "low")
    FIELDS: tl.constexpr = 8 // LOW
    HALVES: tl.constexpr = 2 if about(FORMAT, "per") == 16 else 1
    number, row = tl.program_id(1).to(tl.int64), tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ok = row < rows
    at = (first + number) * block + row * stride
    out = out_ptr + number * out_block + row.to(tl.int64) * cols
    e = tl.arange(0, COLUMNS // FIELDS)
    for begin in range(0, cols, COLUMNS):
        blocks, part = cols // 32, begin // 32 + tl.arange(0, COLUMNS // 32)
        here = ok[:, None] & (part < blocks)[None, :]
        low, one, two = load_codes(w_ptr, at, part, blocks, here, FORMAT)
        for half in tl.static_range(HALVES):
            factor, least = scales(
                s_ptr, at[:, None], part[None, :], blocks, half, part[None, :], here, here, FORMAT, WHOLE, False
            )
            for which in tl.static_range(half * FIELDS // HALVES, (half + 1) * FIELDS // HALVES):
                w = decode(field(low, one, two, which, FORMAT), FORMAT) * factor[:, :, None]
                if about(FORMAT, "minimums"):
                    w += least[:, :, None]
                column = begin + e // (4 * LOW) * 32 + 4 * LOW * which + e % (4 * LOW)
                mask = ok[:, None] & (column < cols)[None, :]
                values = tl.reshape(w, [ROWS, COLUMNS // FIELDS]).to(out_ptr.dtype.element_ty)
                tl.store(out[:, None] + column[None, :], values, mask=mask)


def unpacked(blocks: Blocks) -> Iterator[Run]:
    """All experts of a bank, as many at a time as the buffer holds: the next ones take the place of those before them,
    in the order of the stream."""
    rows, cols = blocks.width, blocks.hidden
    size = 3 * rows * cols
    count = unpacked_experts(size, blocks.experts)
    kind = torch.bfloat16 if PLAIN[0].name == "bf16" else launch.F32
    buffer = torch.empty(count, size, dtype=kind, device=blocks.biases.device)
    gate, up = _part(buffer, 0, cols), _part(buffer, rows * cols, cols)
    plain = replace(blocks, gate=gate, up=up, down=_part(buffer, 2 * rows * cols, rows), offset=rows * cols)
    for first in range(0, blocks.experts, count):
        end = min(first + count, blocks.experts)
        _unpack(blocks.gate, gate, rows, cols, first, end, size)
        _unpack(blocks.up, up, rows, cols, first, end, size)
        _unpack(blocks.down, plain.down, cols, rows, first, end, size)
        yield Run(first, end, plain)


def _part(buffer: Tensor, start: int, cols: int) -> Part:
    """A matrix that begins at value `start` of every expert."""
    values = buffer[:, start:]
    granules = dict(WIDTH=launch.weights_of_granule(PLAIN[0]), WHOLE=False)  # which products of many tokens do not ask
    return Part(PLAIN[0], launch.Stored(values, values, values, cols, cols, granules), buffer.shape[1])


def _unpack(part: Part, into: Part, rows: int, cols: int, first: int, end: int, size: int) -> None:
    _unpack_experts[(launch.cdiv(rows, ROWS), end - first)](
        part.rows.values, part.rows.scales, into.rows.values, first, rows, cols, part.rows.stride, part.size, size,
        WHOLE=part.rows.whole, FORMAT=part.name, ROWS=ROWS, COLUMNS=COLUMNS,
    )  # fmt: skip
