"""The tensors of a pass, from what the scheduler decided."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

import torch

from ....kernels.decoder_layer import Pages, Piece, Places
from ...model.batch import Inputs
from ...model.kv_cache import PAGE
from ..sequence import Sequence
from .batch import Batch
from .state_slots import Keep


def make_inputs(batch: Batch, all_rows: bool = False, keeps: Mapping[int, Keep] | None = None) -> Inputs:
    """The tensors of a batch; `all_rows`: logits after every token, not only after the last ones; keeps: of a model
    with recurrent states, which of them are kept on the way."""
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    starts = [0]
    for i, (sequence, count) in enumerate(zip(batch.sequences, batch.counts, strict=True)):
        span = range(sequence.computed, sequence.computed + count)
        ids += batch.tokens_of(i)[span.start : span.stop]
        positions += span
        slots += [sequence.pages[p // PAGE] * PAGE + p % PAGE for p in span]
        starts.append(len(ids))
    wanted = [row for i in batch.ready for row in range(starts[i + 1] - batch.rows_of(i), starts[i + 1])]
    rows = list(range(len(ids))) if all_rows else wanted
    contexts, tables = batch.contexts, _tables(batch.sequences)
    # Two tensors in pieces: making one takes as long as cutting ten.
    ids_T, slots_T, rows_R = torch.tensor(ids + slots + rows).split([len(ids), len(ids), len(rows)])
    small = positions + starts + contexts + tables
    sizes = [len(positions), len(starts), len(contexts), len(tables)]
    positions_T, starts_S1, contexts_S, tables_SM = torch.tensor(small, dtype=torch.int32).split(sizes)
    places = Places(
        positions_T=positions_T,
        slots_T=slots_T,
        tables_SM=tables_SM.view(len(contexts), -1),
        starts_S1=starts_S1,
        contexts_S=contexts_S,
        states_S=None if keeps is None else torch.tensor([s.slot for s in batch.sequences], dtype=torch.int32),
        pieces=_pieces(batch, keeps) if keeps else (),
        windows=_windows(batch, positions, tables_SM.numel() // len(contexts)),
    )
    return Inputs(ids_T=ids_T, places=places, spans=tuple(zip(batch.counts, contexts, strict=True)), rows=rows_R)


def _pieces(batch: Batch, keeps: Mapping[int, Keep]) -> tuple[Piece, ...]:
    """The tokens of each sequence, cut where its state is kept."""
    pieces, first = [], 0
    for i, (sequence, count) in enumerate(zip(batch.sequences, batch.counts, strict=True)):
        done, end, keep = sequence.computed, sequence.computed + count, keeps.get(i)
        for stop in dict.fromkeys([end] if keep is None else [keep.tokens, end]):
            last = first + stop - done
            numbers = torch.tensor([sequence.slot, 0, last - first, stop], dtype=torch.int32)
            pieces.append(
                Piece(
                    first=first, last=last, states_S=numbers[:1], starts_S1=numbers[1:3], contexts_S=numbers[3:],
                    slot=sequence.slot, keep=keep.slot if keep is not None and keep.tokens == stop else None,
                )
            )  # fmt: skip
            first, done = last, stop
    return tuple(pieces)


def _windows(batch: Batch, positions: list[int], longest: int) -> tuple[Pages, ...]:
    """Where layers over a window keep their rows; tables as long as those of layers that see everything."""
    found = []
    for kind in range(len(batch.sequences[0].windows)):
        held, rows = [one.windows[kind] for one in batch.sequences], iter(positions)
        slots = [one.pages[p // PAGE] * PAGE + p % PAGE for one, n in zip(held, batch.counts, strict=True)
                 for p in islice(rows, n)]  # fmt: skip
        tables_SM = torch.zeros((len(held), longest), dtype=torch.int32)
        for table_M, one in zip(tables_SM, held, strict=True):
            table_M[one.first : len(one.pages)] = torch.tensor(one.pages[one.first :], dtype=torch.int32)
        found.append(Pages(torch.tensor(slots), tables_SM))
    return tuple(found)


def _tables(sequences: list[Sequence]) -> list[int]:
    """The pages of every sequence, one row after the other, rows as long as the longest."""
    longest = max(len(s.pages) for s in sequences)
    return [page for s in sequences for page in s.pages + [0] * (longest - len(s.pages))]
