"""When recurrent states are kept, so that a later prompt with the same beginning goes on from there.

In a prompt: at its last whole page, and on the way wherever it has twice as many pages as where one was kept before. So
a prompt that shares only a beginning with an earlier one finds at least half of it. While a sequence generates: at
every whole page, the newest alone: the next turn of a chat goes on there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ...model.kv_cache import PAGE
from ..sequence import Sequence
from .batch import Batch
from .state_slots import Keep, StateSlots

Keeps = Mapping[int, Keep]  # by the number of a sequence in its batch


class KeptStates:
    """Keeps states of one model. copy(slot, to): of the state of a slot."""

    def __init__(self, slots: StateSlots, copy: Callable[[int, int], None]) -> None:
        self.slots, self.copy = slots, copy

    def before(self, batch: Batch, running: Iterable[Sequence]) -> Keeps:
        """Gives new sequences the states that they go on from, also those that wait for a later pass: a slot of a copy
        may be taken for another one now. What is to be kept on the way of a prompt."""
        self.slots.give_back()
        for sequence in running:
            if sequence.restore is not None:
                self.copy(sequence.restore, sequence.slot)
                sequence.restore = None
        ends = list(map(_end, batch.sequences, batch.counts))
        return {i: Keep(ends[i], self.slots.reserve()) for i in range(batch.decoding, len(ends)) if ends[i]}

    def after(self, batch: Batch, keeps: Keeps) -> None:
        """Makes known what was kept, but of sequences that failed; to be called when the pass is committed."""
        for i, keep in keeps.items():
            self.slots.name(batch.sequences[i].digests[keep.tokens // PAGE - 1], keep.slot)
        for sequence in batch.sequences[: batch.decoding]:
            if sequence.computed % PAGE == 0 and sequence.failure is None:
                self._keep_newest(sequence)

    def _keep_newest(self, sequence: Sequence) -> None:
        if sequence.kept is not None:
            self.slots.forget(sequence.kept)
        sequence.kept = sequence.digests[-1]
        if sequence.kept not in self.slots:
            slot = self.slots.reserve()
            self.copy(sequence.slot, slot)
            self.slots.name(sequence.kept, slot)


def _end(sequence: Sequence, count: int) -> int:
    """After how many tokens a state is worth keeping that is passed by the next `count`; 0: none."""
    before, last = sequence.computed // PAGE, (sequence.computed + count) // PAGE
    is_end = last == len(sequence.tokens) // PAGE
    return last * PAGE if last > before and (is_end or last.bit_length() > before.bit_length()) else 0
