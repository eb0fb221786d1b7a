"""Requests -> batches: which sequences run in the next forward pass, and how many tokens of each.

    nobody has a prompt left      every running sequence gets a token
    nobody generates yet          prompts, up to `prefill_chunk` tokens in all
    both                          those that generate, and beside them as many tokens of prompts as `ChunkLimit` allows;
                                  in between passes without prompts, as `FairShare` says

A sequence is admitted when there are pages for its prompt and a window of new tokens; then it grows by pages. When they
run out, the youngest of the lowest priority has to wait: its full pages stay known as long as nobody needs their room,
so that most of it is not computed again. Two prompts with one beginning compute it once: the second waits for the
first. Of layers over a window a sequence has the last pages (`engine/model/windows.py`), and whoever runs is sure of
them. Knows pages and counts, no tensors of a model.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from ...model.kv_cache import PAGE, PageTable, pages_for
from ...model.windows import Windows
from ..sequence import Sequence
from .batch import DECODE, Batch
from .chunk_limit import ChunkLimit
from .fair_share import FairShare
from .state_slots import StateSlots
from .waiting import MOST_PASSED_OVER, in_order, shared_pages

WINDOW = 512  # new tokens that a sequence is sure of when it is admitted
WATERMARK = 0.03  # of all pages, left free by admission for those that run
MOST_PROMPTS = 2  # under way at a time, if they fill a chunk: half-computed prompts hold pages and serve nobody


class Disk(Protocol):
    """Pages outside of memory, for sequences that wait."""

    def has_read(self, sequence: Sequence, room: int) -> bool:
        """Whether what there is of a sequence's beginning is known in memory; it waits until then. room: pages that may
        be taken for it."""

    def let_go(self, sequence: Sequence) -> None:
        """It waits no more."""


class Drafts(Protocol):
    """Says what may come next in sequences that generate."""

    def propose(self, sequences: list[Sequence], room: int) -> None:
        """Gives each of them its draft (`Sequence.draft`) for the next pass, up to `room` tokens in all."""


class Scheduler:
    """Holds the sequences that wait and that run. states: slots of recurrent states, of a model that has such. limit:
    of prompts beside others; None: `prefill_chunk` alone. share: of time for those that generate. clock: seconds.
    disk: what is kept besides pages in memory. windows: pages of layers over one, of a model that has such. `drafts`,
    where there are such, are verified beside the tokens that sequences have."""

    def __init__(
        self,
        pages: PageTable,
        prefill_chunk: int,
        max_sequences: int,
        states: StateSlots | None = None,
        *,
        limit: ChunkLimit | None = None,
        share: FairShare | None = None,
        clock: Callable[[], float] = time.monotonic,
        disk: Disk | None = None,
        windows: Windows | None = None,
    ) -> None:
        self.pages, self.states = pages, states
        self.windows = windows or Windows()
        self.prefill_chunk, self.max_sequences = prefill_chunk, max_sequences
        self.limit, self.share, self.clock = limit, share or FairShare(0.0), clock
        self.disk = disk
        self.drafts: Drafts | None = None
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.watermark = int(WATERMARK * pages.total)
        self.preemptions = 0
        self.passed_at = 0.0  # when the last pass was booked, by the clock

    def add(self, sequence: Sequence) -> None:
        sequence.arrived = self.clock()
        self.waiting.append(sequence)

    def next_batch(self) -> Batch | None:
        """The next pass, or None if nothing is left to do; what it writes has pages."""
        batch = self._next()
        if batch is not None:
            for sequence, context in zip(batch.sequences, batch.contexts, strict=True):
                self.windows.extend(sequence.windows, context)
        return batch

    def _next(self) -> Batch | None:
        self._admit()
        decoding = self._grow([s for s in self.running if s.is_decoding])
        prompts = [s for s in self.running if not s.is_decoding]
        if prompts and not (decoding and self.share.owes_decode):
            return self._with_prompts(decoding, in_order(prompts, self.clock()))
        return self._batch(decoding, self._counts(decoding), len(decoding)) if decoding else None

    def _batch(self, sequences: list[Sequence], counts: list[int], decoding: int) -> Batch:
        """A pass of so many tokens of each, and behind those that generate their drafts."""
        drafts = {i: s.draft for i, s in enumerate(sequences[:decoding]) if s.draft}
        again = sum(min(s.again, n) for s, n in zip(sequences[:decoding], counts[:decoding], strict=True))
        return Batch(sequences, counts, decoding, drafts, again)

    def _draft(self, decoding: list[Sequence], room: int) -> None:
        """Asks for drafts, of those that have nothing else left to compute, and takes pages for them where there are
        more than admission leaves free: nobody has to wait for a guess."""
        if self.drafts is None or room <= 0:
            return
        self.drafts.propose(decoding, room)
        for sequence in decoding:
            tokens = sequence.computed + sequence.pending + len(sequence.draft)
            more = pages_for(tokens) - len(sequence.pages)
            if sequence.draft and not self.windows.has_spare(sequence.windows, tokens, len(self.running)):
                sequence.draft = []
            if more > 0 and sequence.draft:
                if self.pages.available - more < self.watermark:
                    sequence.draft = []
                else:
                    sequence.pages += self.pages.allocate(more)

    def _with_prompts(self, decoding: list[Sequence], prompts: list[Sequence]) -> Batch:
        """A pass with tokens of prompts, in their order, beside those that generate."""
        chosen, counts = list(decoding), self._counts(decoding)
        room = self.prefill_chunk
        if decoding:
            # The tensors of a pass have room for a chunk, or a token of every sequence.
            room = max(1, room - sum(counts))
            if self.limit is not None:
                room = min(room, self.limit.tokens(len(decoding), _context(decoding + prompts[:1])))
        for sequence in prompts:
            if room == 0:
                break
            chosen.append(sequence)
            counts.append(min(sequence.pending, room))
            room -= counts[-1]
        return self._batch(chosen, counts, len(decoding))

    def _counts(self, decoding: list[Sequence]) -> list[int]:
        """How many tokens of each that generates: one, what is forced behind it, as far as there is room, and where
        all of that has room a draft."""
        room, counts = self.prefill_chunk - len(decoding) - 1, []  # one is for a prompt beside them
        for sequence in decoding:
            sequence.draft = []
            counts.append(1 + min(sequence.forced, max(0, room)))
            room -= counts[-1] - 1
        self._draft([s for s, n in zip(decoding, counts, strict=True) if n == s.pending], room)
        return [count + len(sequence.draft) for sequence, count in zip(decoding, counts, strict=True)]

    def _admit(self) -> None:
        """Lets those in that wait, in their order, as long as there is room and no prompt waits for nothing."""
        blocked: list[Sequence] = []
        for sequence in in_order(self.waiting, self.clock()) if self.waiting else ():
            if len(self.running) >= self.max_sequences or self._has_enough_prompts():
                return
            if blocked and blocked[0].passed_over >= MOST_PASSED_OVER:
                return
            if self._is_being_computed(sequence) or self._is_being_read(sequence):
                continue
            if not self._enter(sequence):
                blocked.append(sequence)
                continue
            for one in blocked:
                one.passed_over += 1

    def _has_enough_prompts(self) -> bool:
        """Whether more prompts would only hold pages: so many are under way, and they fill the next pass."""
        left = [s.pending for s in self.running if not s.is_decoding]
        return len(left) >= MOST_PROMPTS and sum(left) >= self.prefill_chunk

    def _is_being_computed(self, sequence: Sequence) -> bool:
        """Whether a running prompt computes pages now that this one can take over when they are done."""
        prompts = [s for s in self.running if not s.is_decoding]
        alike = [s for s in prompts if s.salt == sequence.salt]
        return any(PAGE * shared_pages(sequence.tokens, s.tokens) > s.computed for s in alike)

    def _is_being_read(self, sequence: Sequence) -> bool:
        """Whether pages that it can take over come from the disk."""
        if self.disk is None:
            return False
        return not self.disk.has_read(sequence, self.pages.available - (self.watermark if self.running else 0))

    def _enter(self, sequence: Sequence) -> bool:
        """Gives a sequence its pages and lets it run; False if there are too few."""
        if not self.windows.have_room(one.longest for one in (*self.running, sequence)):
            return False
        known = self.pages.known(sequence.tokens, sequence.prompt_digests, sequence.salt)
        ends = None if self.states is None else self.states.__contains__
        digests = known[: self.windows.longest(known, ends)]
        reused = self.pages.take_over(digests)
        need = pages_for(min(sequence.longest, len(sequence.tokens) + WINDOW)) - len(reused)
        if need + (self.watermark if self.running else 0) > self.pages.available:
            self.pages.release(reused)
            return False
        sequence.pages, sequence.digests = reused + self.pages.allocate(need), digests
        sequence.windows = self.windows.take_over(digests)
        ends_of_prompt = (sequence.prompt_tokens - 1) // PAGE, sequence.prompt_tokens // PAGE
        sequence.points = (*ends_of_prompt, len(known), len(digests))
        sequence.computed = len(reused) * PAGE
        if len(sequence.tokens) == sequence.prompt_tokens:  # of one that was preempted it is known already
            sequence.reused = sequence.computed
            sequence.admitted = self.clock()
        if self.states is not None:
            sequence.slot = self.states.free.pop()
            sequence.restore = self.states.find(digests[-1]) if digests else None
        self._leave_queue(sequence)
        self.running.append(sequence)
        return True

    def _grow(self, decoding: list[Sequence]) -> list[Sequence]:
        """Gives each its pages for the next tokens; where there is none, the least important sequence waits. Returns
        those that still run."""
        for sequence in decoding:
            while sequence in self.running and len(sequence.pages) * PAGE <= sequence.computed + sequence.forced:
                if self.pages.available:
                    sequence.pages += self.pages.allocate(1)
                else:
                    self._preempt(max(self.running, key=lambda s: (s.priority, s.id)))
        return [s for s in decoding if s in self.running]

    def _preempt(self, sequence: Sequence) -> None:
        """Takes its pages away; it waits, and goes on later where it was."""
        self._leave(sequence)
        sequence.computed, sequence.forced, sequence.restore, sequence.fetch = 0, 0, None, None
        sequence.draft, sequence.again = [], 0
        self.waiting.append(sequence)
        self.preemptions += 1

    def forget(self) -> None:
        """What was in the caches is gone: whoever runs waits, and computes its tokens anew."""
        for sequence in list(self.running):
            self._preempt(sequence)
        for table in (self.pages, *(pool.table for pool in self.windows.pools)):
            table.forget()
        if self.states is not None:
            self.states.forget_all()

    def commit(self, batch: Batch, seconds: float = 0.0) -> None:
        """Books a pass that was run: its tokens are in the cache now, but for drafts, and full pages become known.
        seconds: that it took."""
        for i, (sequence, count) in enumerate(zip(batch.sequences, batch.counts, strict=True)):
            sequence.again = max(0, sequence.again - count)
            sequence.forced = max(0, sequence.forced - count)
            self._computed(sequence, count - len(batch.drafts.get(i, ())))
        self.passed_at = self.clock()
        self.share.booked(batch.phase, seconds)
        if self.limit is not None and batch.phase != DECODE:
            prompts = batch.tokens - batch.generated
            self.limit.saw(prompts, batch.decoding, _context(batch.sequences), seconds)

    def settle_draft(self, sequence: Sequence, base: int, accepted: int, *, is_kept: bool) -> None:
        """Books what became of a sequence's draft, behind `base` other tokens of the pass: so many of it were
        accepted, and are among its tokens. is_kept: they are in the cache, as those of keys and values are; a
        recurrent state that was put back makes all of the pass tokens to be computed again."""
        sequence.draft = []
        if is_kept:
            self._computed(sequence, accepted)
        else:
            sequence.computed -= base
            del sequence.digests[sequence.computed // PAGE :]  # the last one is where the state stands
            sequence.again += base + accepted
            sequence.forced += base + accepted

    def _computed(self, sequence: Sequence, count: int) -> None:
        """So many more of its tokens are in the cache. Of one that failed none: no other prompt may go on from them."""
        if sequence.failure is not None:
            return
        sequence.computed += count
        digests, known = sequence.digests, len(sequence.digests)
        self.pages.publish(sequence.tokens, sequence.pages, digests, sequence.computed, sequence.salt)
        self.windows.advance(sequence.windows, sequence.computed, digests, known, sequence.points)

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out, whatever its state, and gives its pages back."""
        if sequence in self.running:
            self._leave(sequence)
        elif sequence in self.waiting:
            self._leave_queue(sequence)

    def _leave_queue(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        if self.disk is not None:
            self.disk.let_go(sequence)

    def _leave(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        if self.states is not None:
            self.states.free.append(sequence.slot)
        self.pages.release(sequence.pages)
        self.windows.release(sequence.windows)
        sequence.pages, sequence.digests, sequence.windows = [], [], []


def _context(sequences: list[Sequence]) -> int:
    """Tokens of the longest cache among sequences."""
    return max(s.computed for s in sequences)
