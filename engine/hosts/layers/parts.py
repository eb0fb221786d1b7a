"""A pass in parts that go through the machines one behind the other, so that all of them have something to do.

A part has neighbouring tokens of the pass: some of its sequences, or a piece of a prompt, which finds what the part
before it left in the cache. A prompt whose recurrent state is kept on the way is cut at that place alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from ....kernels.decoder_layer import Pages, Piece, Places
from ...ledger.pass_bytes import Span
from ...model.batch import Inputs


@dataclass(frozen=True)
class Part:
    """Tokens [first, last) of a pass: where they stand, whose logits are wanted (None: of all), and of each sequence
    the new tokens and those in the cache after the part."""

    first: int
    last: int
    places: Places
    rows_R: Tensor | None
    spans: tuple[Span, ...]


def cut(inputs: Inputs, count: int) -> list[Part]:
    """About so many parts, as even as can be."""
    places, rows_R, T = inputs.places, inputs.wanted_rows, len(inputs.ids_T)
    if count == 1:
        return [Part(0, T, places, rows_R, inputs.spans)]
    able = [piece.last for piece in places.pieces] or list(range(1, T + 1))
    wanted = [T * number / count for number in range(1, count)]
    ends = sorted({T, *(min(able, key=lambda end: abs(end - one)) for one in wanted)})
    if len(ends) == 1:
        return [Part(0, T, places, rows_R, inputs.spans)]
    starts = places.starts_S1.tolist()
    return [_part(inputs, starts, first, last) for first, last in pairwise([0, *ends])]


def _part(inputs: Inputs, starts: Sequence[int], first: int, last: int) -> Part:
    """Tokens [first, last); starts: of the sequences of the whole pass, and its end."""
    it, rows_R = inputs.places, inputs.wanted_rows
    there = [s for s in range(len(starts) - 1) if starts[s] < last and starts[s + 1] > first]
    sequences = slice(there[0], there[-1] + 1)
    edges = [min(max(starts[s], first), last) - first for s in [*there, there[-1] + 1]]
    behind = max(0, starts[there[-1] + 1] - last)  # tokens of the last sequence that other parts have
    contexts_S = it.contexts_S[sequences].clone()
    contexts_S[-1] -= behind
    places = Places(
        positions_T=it.positions_T[first:last], slots_T=it.slots_T[first:last], tables_SM=it.tables_SM[sequences],
        starts_S1=torch.tensor(edges, dtype=torch.int32), contexts_S=contexts_S,
        states_S=None if it.states_S is None else it.states_S[sequences],
        pieces=tuple(_moved(piece, first) for piece in it.pieces if first <= piece.first < last),
        windows=tuple(Pages(slots_T[first:last], tables_SM[sequences]) for slots_T, tables_SM in it.windows),
    )  # fmt: skip
    rows = None if rows_R is None else rows_R[(rows_R >= first) & (rows_R < last)] - first
    counts = [end - start for start, end in pairwise(edges)]
    return Part(first, last, places, rows, tuple(zip(counts, contexts_S.tolist(), strict=True)))


def _moved(piece: Piece, first: int) -> Piece:
    return replace(piece, first=piece.first - first, last=piece.last - first)
