"""Rows on the wire: float32 as they are, bfloat16, or int8 with a scale for every 32 numbers.

    WORK   layer u32 | rows u32 | choices u32 | flags u32 | row of each choice u16 | expert of each u16
           [| weight of each f32: of experts that take x times it, or of sums] | rows
    ROWS   first choice (or row) u32 | choices (or rows) u32 | rows

A choice is a token and one expert of its; a host answers with a row for each, in the order asked, in as many frames as
it likes. So float32 on the wire changes no bit, and what a choice gives does not depend on who computes it. With the
other formats, which change bits anyway, a host adds up what its experts give a token, by their weights: then an answer
has one row for each row of the request. Bytes of both are those of `bandwidth_model/network/wire_sizes.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...bandwidth_model.network import wire_sizes
from ...bandwidth_model.network.wire_sizes import GROUP, ROW, groups
from .frames import Broken, Kind, head

WEIGHTED, SUMMED = 1, 2  # flags: weights follow; the answer is a sum for each row
TASK, ANSWER = struct.Struct("<IIII"), struct.Struct("<II")
NUMBER = np.dtype("<u2")  # of a row, or an expert
MOST_ROWS = 1 << 16  # that two bytes can number


class WireFormat(NamedTuple):
    """One form of rows. row(D): bytes of a row of D numbers."""

    name: str
    code: int
    row: Callable[[int], int]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor, int], Tensor]

    @property
    def is_summed(self) -> bool:
        """Whether hosts answer with sums."""
        return wire_sizes.is_summed(self.name)


def _to_int8(x_ND: Tensor) -> Tensor:
    """uint8 [N, D + 4 * groups]: scales, then numbers."""
    (N, D), G = x_ND.shape, groups(x_ND.shape[1])
    padded = torch.zeros(N, G * GROUP)
    padded[:, :D] = x_ND
    grouped = padded.view(N, G, GROUP)
    scales = grouped.abs().amax(2) / 127
    safe = torch.where(scales > 0, scales, torch.ones_like(scales))
    codes = (grouped / safe[:, :, None]).round().to(torch.int8).view(N, -1)[:, :D]
    return torch.cat([scales.contiguous().view(torch.uint8), codes.contiguous().view(torch.uint8)], 1)


def _from_int8(data_NB: Tensor, numbers: int) -> Tensor:
    G = groups(numbers)
    # Of one row `contiguous` keeps the stride, which is no whole number of scales where D is none of 4.
    scales = data_NB[:, : 4 * G].clone(memory_format=torch.contiguous_format).view(torch.float32)
    codes = data_NB[:, 4 * G :].contiguous().view(torch.int8).float()
    return codes * scales.repeat_interleave(GROUP, 1)[:, :numbers]


F32 = WireFormat(
    "f32",
    1,
    ROW["f32"],
    lambda x: x.contiguous().view(torch.uint8),
    lambda b, D: b.contiguous().view(torch.float32),
)
BF16 = WireFormat(
    "bf16",
    2,
    ROW["bf16"],
    lambda x: x.to(torch.bfloat16).contiguous().view(torch.uint8),
    lambda b, D: b.contiguous().view(torch.bfloat16).float(),
)
INT8 = WireFormat("int8", 3, ROW["int8"], _to_int8, _from_int8)
WIRES = {one.name: one for one in (F32, BF16, INT8)}
BY_CODE = {one.code: one for one in WIRES.values()}


class Work(NamedTuple):
    """What a host is to compute: experts ids [N] of layer number `layer` (of those with experts) take rows at [N] of x
    [T, D]. weights [N]: of experts that take x times them, or of a sum; is_summed: the answer is a sum for each row."""

    layer: int
    x_TD: Tensor
    at_N: Tensor
    ids_N: Tensor
    weights_N: Tensor | None
    is_summed: bool = False


def work_parts(work: Work, wire: WireFormat, call: int) -> list[memoryview]:
    """A WORK frame, in parts to be sent one after the other."""
    rows = _bytes(wire.encode(work.x_TD))
    places = np.concatenate([work.at_N.numpy(), work.ids_N.numpy()]).astype(NUMBER).tobytes()
    weights = b"" if work.weights_N is None else work.weights_N.numpy().tobytes()
    flags = (0 if work.weights_N is None else WEIGHTED) | (SUMMED if work.is_summed else 0)
    task = TASK.pack(work.layer, len(work.x_TD), len(work.at_N), flags)
    length = len(task) + len(places) + len(weights) + len(rows)
    start = head(Kind.WORK, length, wire.code, call) + task + places + weights
    return [memoryview(start), rows]


def read_work(body: bytearray, wire: WireFormat, experts: Sequence[int], hidden: int) -> Work:
    """What a WORK frame asks for; experts: of each layer. Raises Broken where its lengths or numbers do not fit."""
    if len(body) < TASK.size:
        raise Broken("a request for experts is too short: the connection is closed")
    layer, tokens, choices, flags = TASK.unpack(body[: TASK.size])
    weighted, is_summed = bool(flags & WEIGHTED), bool(flags & SUMMED)
    sizes = [2 * choices, 2 * choices, 4 * choices * weighted, tokens * wire.row(hidden)]
    fits = TASK.size + sum(sizes) == len(body) and (weighted or not is_summed)
    if not fits or layer >= len(experts) or tokens > MOST_ROWS or not choices:
        raise Broken("the lengths in a request for experts do not fit: the connection is closed")
    at_N, ids_N = np.frombuffer(body, NUMBER, 2 * choices, TASK.size).astype(np.int32).reshape(2, choices)
    if at_N.max() >= tokens or ids_N.max() >= experts[layer]:
        raise Broken("a request names a row or an expert that is not there: the connection is closed")
    first = TASK.size + 4 * choices
    weights_N = torch.frombuffer(body, dtype=torch.float32, count=choices, offset=first) if weighted else None
    rows_TB = torch.frombuffer(body, dtype=torch.uint8, offset=first + sizes[2]).view(tokens, -1)
    places = torch.from_numpy(at_N), torch.from_numpy(ids_N)
    return Work(layer, wire.decode(rows_TB, hidden), *places, weights_N, is_summed)


def answer_parts(rows_ND: Tensor, first: int, wire: WireFormat, call: int) -> list[memoryview]:
    """A ROWS frame: of the choices, or sums, from `first` on."""
    rows, start = _bytes(wire.encode(rows_ND)), ANSWER.pack(first, len(rows_ND))
    return [memoryview(head(Kind.ROWS, len(start) + len(rows), wire.code, call) + start), rows]


def read_answer(body: bytearray, wire: WireFormat, hidden: int) -> tuple[int, Tensor]:
    """The first choice (or sum), and float32 [choices, hidden]. Raises Broken."""
    if len(body) < ANSWER.size:
        raise Broken("an answer is too short: the connection is closed")
    first, choices = ANSWER.unpack(body[: ANSWER.size])
    if len(body) != ANSWER.size + choices * wire.row(hidden) or not choices:
        raise Broken("the lengths in an answer do not fit: the connection is closed")
    return first, wire.decode(torch.frombuffer(body, dtype=torch.uint8, offset=ANSWER.size).view(choices, -1), hidden)


def _bytes(data: Tensor) -> memoryview:
    """The bytes of a uint8 tensor, without a copy."""
    flat: memoryview = data.contiguous().view(-1).numpy().data
    return flat
