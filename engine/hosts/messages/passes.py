"""A pass through some layers on the wire: where its tokens stand in the cache, and their hidden states.

    PASS    sizes u32 | numbers i32: positions, cache slots, page tables, starts, contexts, state slots, the same of
            windows, states to be copied before, pieces, wanted rows | hidden states
    HIDDEN  rows u32 | experts that each layer read u32 | chosen experts u16 | hidden states

Cache slots and pages have the coordinator's numbers on every machine, so that a host knows no sequence: what a pass
writes and reads says the message. Hidden states have the form of `rows.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ....kernels.decoder_layer import Pages, Piece, Places
from .frames import HEADER, Broken, Kind, head
from .rows import WireFormat

STATES, ROWS, BY_ROW, CHOSEN = 1, 2, 4, 8  # flags: slots of states, rows that are wanted, no tiles, choices go back
TASK = struct.Struct("<9I")
ANSWER = struct.Struct("<I")
PIECE = 6  # numbers of a piece
I32 = torch.int32
MOST = 1 << 20  # of anything that a pass counts: windows too make a list before their bytes are held against the body's


class Task(NamedTuple):
    """What is to be run: layers [first, last), the tokens' places, and streams float32 [T, X]. rows: whose logits are
    wanted, None: all. copies: of states, from one slot to another, before the pass. by_row: no tiles are used."""

    first: int
    last: int
    x_TX: Tensor
    places: Places
    rows_R: Tensor | None
    copies: Sequence[tuple[int, int]] = ()
    by_row: bool = False
    chosen: bool = False


class Done(NamedTuple):
    """What came of it: streams [R, X]; of each layer how many different experts it read, and its choices [., K] where
    they are wanted, None in a layer without experts."""

    x_RX: Tensor
    distinct: list[int]
    ids: list[Tensor | None]


def places_bytes(task: Task) -> int:
    """Bytes of a message besides hidden states."""
    return HEADER.size + TASK.size + 4 * sum(map(len, _numbers(task)))


def task_parts(task: Task, wire: WireFormat, call: int) -> list[memoryview]:
    """A PASS frame, in parts to be sent one after the other."""
    places, rows = task.places, task.rows_R
    flags = STATES * (places.states_S is not None) | ROWS * (rows is not None)
    flags |= BY_ROW * task.by_row | CHOSEN * task.chosen
    (sequences, pages), windows = places.tables_SM.shape, len(places.windows)
    start = TASK.pack(
        task.first << 16 | task.last, len(task.x_TX), sequences, pages, windows, len(task.copies), len(places.pieces),
        0 if rows is None else len(rows), flags,
    )  # fmt: skip
    numbers, data = torch.cat(_numbers(task)), wire.encode(task.x_TX)
    length = TASK.size + numbers.nbytes + data.nbytes
    first = head(Kind.PASS, length, wire.code, call) + start + bytes(_bytes(numbers))
    return [memoryview(first), _bytes(data)]


def _numbers(task: Task) -> list[Tensor]:
    """All that are sent, int32, in their order."""
    it = task.places
    found = [it.positions_T, it.slots_T, it.tables_SM, it.starts_S1, it.contexts_S]
    found += [] if it.states_S is None else [it.states_S]
    found += [one for pages in it.windows for one in pages]
    found.append(torch.tensor([number for copy in task.copies for number in copy], dtype=I32))
    found.append(torch.tensor([number for piece in it.pieces for number in _of_piece(piece)], dtype=I32))
    found += [] if task.rows_R is None else [task.rows_R]
    return [one.flatten().to(I32) for one in found]


def _of_piece(piece: Piece) -> list[int]:
    keep = -1 if piece.keep is None else piece.keep
    return [piece.first, piece.last, int(piece.states_S[0]), piece.slot, keep, int(piece.contexts_S[0])]


def read_task(body: bytearray, wire: WireFormat, width: int) -> Task:
    """What a PASS frame asks for; width: numbers of a token's streams. Raises Broken where its lengths or numbers do
    not fit."""
    if len(body) < TASK.size:
        raise Broken("a pass is too short: the connection is closed")
    layers, T, S, M, windows, copies, pieces, rows, flags = TASK.unpack(body[: TASK.size])
    if max(windows, T, S, M, copies, pieces) > MOST:
        raise Broken("the counts in a pass are too large: the connection is closed")
    sizes = [T, T, S * M, S + 1, S, S * bool(flags & STATES), *[T, S * M] * windows, 2 * copies, PIECE * pieces]
    sizes.append(rows if flags & ROWS else 0)
    end = TASK.size + 4 * sum(sizes)
    if end + T * wire.row(width) != len(body) or not T or not S or not M:
        raise Broken("the lengths in a pass do not fit: the connection is closed")
    data = torch.frombuffer(body, dtype=torch.uint8)
    numbers = list(data[TASK.size : end].clone().view(I32).split(sizes))
    rows_R = numbers.pop().long() if flags & ROWS else None
    if rows_R is not None and len(rows_R) and not 0 <= int(rows_R.min()) <= int(rows_R.max()) < T:
        raise Broken("a pass names a row that is not there: the connection is closed")
    x_TX = wire.decode(data[end:].clone().view(T, -1), width)
    *found, copied, cut = numbers if flags & ROWS else numbers[:-1]
    places = _places(found, (S, M), windows, bool(flags & STATES), _pieces(cut, T))
    pairs = [(a, b) for a, b in copied.view(-1, 2).tolist()]
    return Task(layers >> 16, layers & 0xFFFF, x_TX, places, rows_R, pairs, bool(flags & BY_ROW), bool(flags & CHOSEN))


def _places(
    found: list[Tensor], size: tuple[int, int], windows: int, has_states: bool, pieces: tuple[Piece, ...]
) -> Places:
    positions, slots, tables, starts, contexts, states, *more = found
    pages = tuple(Pages(more[2 * i].long(), more[2 * i + 1].view(size)) for i in range(windows))
    return Places(
        positions_T=positions, slots_T=slots.long(), tables_SM=tables.view(size), starts_S1=starts, contexts_S=contexts,
        states_S=states if has_states else None, pieces=pieces, windows=pages,
    )  # fmt: skip


def _pieces(cut: Tensor, tokens: int) -> tuple[Piece, ...]:
    found = []
    for first, last, state, slot, keep, context in cut.view(-1, PIECE).tolist():
        if not 0 <= first < last <= tokens:
            raise Broken("a pass names tokens that are not there: the connection is closed")
        numbers = torch.tensor([state, 0, last - first, context], dtype=I32)
        found.append(
            Piece(
                first=first, last=last, states_S=numbers[:1], starts_S1=numbers[1:3], contexts_S=numbers[3:],
                slot=slot, keep=None if keep < 0 else keep,
            )
        )  # fmt: skip
    return tuple(found)


def answer_parts(done: Done, wire: WireFormat, call: int) -> list[memoryview]:
    """A HIDDEN frame."""
    data, distinct = wire.encode(done.x_RX), torch.tensor(done.distinct, dtype=I32)
    ids = [one.flatten().to(torch.uint16).view(torch.uint8) for one in done.ids if one is not None]
    besides = bytes(_bytes(distinct)) + b"".join(bytes(_bytes(one)) for one in ids)
    length = ANSWER.size + len(besides) + data.nbytes
    start = head(Kind.HIDDEN, length, wire.code, call) + ANSWER.pack(len(done.x_RX)) + besides
    return [memoryview(start), _bytes(data)]


def answer_bytes(shapes: Sequence[tuple[int, int]]) -> int:
    """Bytes of an answer besides hidden states; shapes: of each layer its tokens and their choices."""
    return HEADER.size + ANSWER.size + sum(4 + 2 * tokens * choices for tokens, choices in shapes)


def read_answer(body: bytearray, wire: WireFormat, width: int, shapes: Sequence[tuple[int, int]], rows: int) -> Done:
    """What came; shapes: of each layer the tokens and choices that are due. Raises Broken."""
    due = ANSWER.size + sum(4 + 2 * tokens * choices for tokens, choices in shapes) + rows * wire.row(width)
    if len(body) != due or ANSWER.unpack(body[: ANSWER.size]) != (rows,):
        raise Broken("the lengths in an answer do not fit: the connection is closed")
    data, at = torch.frombuffer(body, dtype=torch.uint8), ANSWER.size + 4 * len(shapes)
    distinct, ids = data[ANSWER.size : at].clone().view(I32).tolist(), list[Tensor | None]()
    for tokens, choices in shapes:
        size = 2 * tokens * choices
        part = data[at : at + size].clone().view(torch.uint16).to(I32)
        ids.append(part.view(tokens, choices) if choices else None)
        at += size
    return Done(wire.decode(data[at:].clone().view(rows, wire.row(width)), width), distinct, ids)


def _bytes(data: Tensor) -> memoryview:
    """The bytes of a tensor, without a copy."""
    flat: memoryview = data.contiguous().view(-1).view(torch.uint8).numpy().data
    return flat
