"""Drafts in the passes of a loop: recurrent states are put aside before one is verified, and put back where it is
refused.

Keys and values of refused tokens are written over by those that come; a recurrent state has moved on. So it is copied
before the pass, and the tokens that held are computed once more with the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq

from torch import Tensor

from ...kernels import Ops
from ..generation.schedule.batch import DECODE, Batch
from ..generation.schedule.scheduler import Scheduler
from ..generation.schedule.state_slots import StateSlots
from ..generation.sequence import Sequence
from ..ledger.pass_bytes import EXPERTS, Span
from ..ledger.passes import CPU_DRAM, Pass
from .mtp.drafter import MtpDrafter
from .speculation import Speculation
from .verify import Draw, accept


def most_states(slots: StateSlots) -> int:
    """Sequences whose state can be put aside: half of the room for copies, the other half is for prompts to come."""
    return (len(slots.room) + len(slots.slot_of)) // 2


class Drafts:
    """Of one loop. copy(slot, to): of a recurrent state."""

    def __init__(
        self,
        speculation: Speculation,
        scheduler: Scheduler,
        states: StateSlots | None,
        copy: Callable[[int, int], None],
    ) -> None:
        self.speculation, self.scheduler, self.states, self.copy = speculation, scheduler, states, copy
        self.readers = [one for one in speculation.drafters if isinstance(one, MtpDrafter)]
        self.aside: dict[int, int] = {}
        self.held: dict[int, int] = {}
        self.handed_s = 0.0

    def before(self, batch: Batch) -> None:
        """Puts states of sequences with drafts aside. Their slots are free again when the next pass begins, as all that
        were reserved are."""
        self.held = {}
        if self.states is not None:
            self.aside = {i: self.states.reserve() for i in batch.drafts}
            for i, slot in self.aside.items():
                self.copy(batch.sequences[i].slot, slot)

    def settle(
        self,
        batch: Batch,
        logits_RV: Tensor,
        rows: list[int],
        draw: Draw,
        ops: Ops,
        take: Callable[[Sequence, int], bool],
    ) -> int:
        """Verifies the drafts of a pass whose other tokens are committed; tokens that came true in all."""
        held = self.held = accept(logits_RV, batch, rows, draw, ops, take)
        for i, draft in batch.drafts.items():
            sequence, is_kept = batch.sequences[i], self.states is None or held[i] == len(draft)
            if not is_kept:
                self.copy(self.aside[i], sequence.slot)
            self.scheduler.settle_draft(sequence, batch.counts[i] - len(draft), held[i], is_kept=is_kept)
        return sum(held.values())

    def hand_out(self, done: Pass, batch: Batch, spans: Seq[Span], hidden_TD: Tensor | None) -> None:
        """Shows the hidden states of a pass, whose drafts are settled, to what goes on from them. The pass gets the
        seconds that took, and the guesses before it."""
        self.handed_s, done.guesses = 0.0, self.speculation.take_guesses()
        if not self.readers or hidden_TD is None:
            return
        start = time.perf_counter()
        counts = [new for new, _ in spans]
        holds = [new - len(batch.drafts.get(i, ())) + self.held.get(i, 0) for i, new in enumerate(counts)]
        own = [rows[:count] for rows, count in zip(hidden_TD.split(counts), holds, strict=True)]
        for reader in self.readers:
            reader.saw(batch.sequences, [context - new for new, context in spans], own)
        self.handed_s = time.perf_counter() - start
        done.measured_s += self.handed_s

    def saw(self, batch: Batch, done: Pass) -> None:
        """Learns from what a pass took, and from what its experts were, where those in RAM are all there are."""
        times, guessed_s, self.speculation.guessed_s = self.speculation.times, self.speculation.guessed_s, 0.0
        if times is None or batch.phase != DECODE:
            return
        read = done.bytes.get(CPU_DRAM, {}).get(EXPERTS, 0)
        took = done.measured_s - guessed_s - self.handed_s  # guesses cost what drafters say
        times.saw(len(batch.sequences), batch.generated - batch.decoding, max(batch.contexts), took, read)
