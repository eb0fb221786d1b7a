"""Requests -> batches: which sequences run in the next forward pass, and how many tokens of each.

First come, first served. A pass is either prefill (prompt chunks, up to `prefill_chunk` tokens in all) or decode (one
token of every running sequence), so that the ledger can tell the two apart. A sequence is admitted when the pages for
its longest possible length are there; it then never has to wait or be thrown out. Knows pages and counts, no tensors of
a model.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

from ...kernels.decoder_layer import Places
from ..model.batch import Inputs
from ..model.kv_cache import PAGE, PageTable, pages_for
from .sequence import Sequence


@dataclass(frozen=True)
class Batch:
    """One forward pass: for each sequence, how many of its next tokens go through the model."""

    sequences: list[Sequence]
    counts: list[int]
    is_prefill: bool

    @property
    def tokens(self) -> int:
        return sum(self.counts)

    @property
    def contexts(self) -> list[int]:
        """Tokens in the cache after the pass, by sequence."""
        return [s.computed + n for s, n in zip(self.sequences, self.counts, strict=True)]

    @property
    def ready(self) -> list[int]:
        """Indices of the sequences whose last token is in this pass, so that a new one can be sampled after it."""
        return [i for i, context in enumerate(self.contexts) if context == len(self.sequences[i].tokens)]


class Scheduler:
    """Holds the sequences that wait and that run."""

    def __init__(self, pages: PageTable, prefill_chunk: int, max_sequences: int) -> None:
        """Running sequences have slots of recurrent states, 0 to max_sequences - 1."""
        self.pages = pages
        self.prefill_chunk = prefill_chunk
        self.max_sequences = max_sequences
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.slots = list(range(max_sequences - 1, -1, -1))

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def next_batch(self) -> Batch | None:
        """The next pass, or None if nothing is left to do."""
        self._admit()
        prefill = self._chunks([s for s in self.running if s.pending > 1 or s.computed < s.prompt_tokens])
        if prefill is not None or not self.running:
            return prefill
        return Batch(list(self.running), [1] * len(self.running), is_prefill=False)

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.max_sequences:
            sequence = self.waiting[0]
            reused, digests = self.pages.reuse(sequence.tokens)
            need = pages_for(sequence.longest) - len(reused)
            if need > self.pages.available:
                self.pages.release(reused)
                return
            sequence.pages, sequence.digests = reused + self.pages.allocate(need), digests
            sequence.computed = sequence.reused = len(reused) * PAGE
            sequence.slot = self.slots.pop()
            self.running.append(self.waiting.popleft())

    def _chunks(self, sequences: list[Sequence]) -> Batch | None:
        room = self.prefill_chunk
        chosen: list[Sequence] = []
        counts: list[int] = []
        for sequence in sequences:
            count = min(sequence.pending, room)
            if count == 0:
                break
            chosen.append(sequence)
            counts.append(count)
            room -= count
        return Batch(chosen, counts, is_prefill=True) if chosen else None

    def commit(self, batch: Batch) -> None:
        """Books a pass that was run: its tokens are in the cache now, and full pages become known."""
        for sequence, count in zip(batch.sequences, batch.counts, strict=True):
            sequence.computed += count
            self.pages.publish(sequence.tokens, sequence.pages, sequence.digests, sequence.computed)

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out, whatever its state, and gives its pages back."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.slots.append(sequence.slot)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.pages.release(sequence.pages)
        sequence.pages = []


def make_inputs(batch: Batch, all_rows: bool = False, has_states: bool = False) -> Inputs:
    """The tensors of a batch; `all_rows`: logits after every token, not only after the last ones; has_states: of a
    model with recurrent states."""
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    starts = [0]
    for sequence, count in zip(batch.sequences, batch.counts, strict=True):
        span = range(sequence.computed, sequence.computed + count)
        ids += sequence.tokens[span.start : span.stop]
        positions += span
        slots += [sequence.pages[p // PAGE] * PAGE + p % PAGE for p in span]
        starts.append(len(ids))
    rows = list(range(len(ids))) if all_rows else [starts[i + 1] - 1 for i in batch.ready]
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
        states_S=torch.tensor([s.slot for s in batch.sequences], dtype=torch.int32) if has_states else None,
    )
    return Inputs(ids_T=ids_T, places=places, spans=tuple(zip(batch.counts, contexts, strict=True)), rows=rows_R)


def _tables(sequences: list[Sequence]) -> list[int]:
    """The pages of every sequence, one row after the other, rows as long as the longest."""
    longest = max(len(s.pages) for s in sequences)
    return [page for s in sequences for page in s.pages + [0] * (longest - len(s.pages))]
