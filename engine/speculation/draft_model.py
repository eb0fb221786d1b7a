"""A second, small model as drafter, in the same process: it says greedily how a text goes on.

It has a cache of its own, in which a sequence is as far as it was when it was last asked: refused tokens are written
over. What it needs for the tokens that came since goes in one pass, then each token of the draft takes a pass.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from typing import Literal

import torch

from ..config import SamplingParams
from ..devices.device import Device
from ..generation.schedule.batch import Batch
from ..generation.schedule.inputs import make_inputs
from ..generation.sequence import Sequence, make_sequence
from ..ledger import guesses
from ..ledger.guesses import Guesses
from ..model.decoder import Decoder
from ..model.kv_cache import PageTable, pages_for
from .drafter import MODEL_KIND, Draft
from .vocabulary.draft_head import read_of
from .vocabulary.draft_vocabulary import DraftVocabulary


class DraftModel:
    """pages: of its cache; chunk: most tokens of one pass; max_context: longest text that it drafts for."""

    is_free: Literal[False] = False
    kind = MODEL_KIND

    def __init__(
        self,
        decoder: Decoder,
        main: Device,
        pages: PageTable,
        chunk: int,
        max_context: int,
        vocabulary: DraftVocabulary,
    ) -> None:
        self.decoder, self.main, self.pages = decoder, main, pages
        self.chunk, self.max_context = chunk, max_context
        self.vocabulary, self.made = vocabulary, guesses.NONE
        self.mine: dict[int, Sequence] = {}

    def draft_all(self, asked: Seq[tuple[Sequence, int]]) -> list[Draft | None]:
        """One after the other."""
        return [self.draft(sequence, most) for sequence, most in asked]

    def draft(self, sequence: Sequence, most: int) -> Draft | None:
        """What it would say; None where its cache has no room."""
        mine = self._caught_up(sequence)
        need = pages_for(len(mine.tokens) + most) - len(mine.pages)
        if len(mine.tokens) + most > self.max_context or need > self.pages.available:
            return None
        mine.pages += self.pages.allocate(max(0, need))
        said = [self._next(mine)]
        start, head_s = time.perf_counter(), self.vocabulary.head.seconds
        for _ in range(most - 1):
            mine.tokens.append(said[-1])
            said.append(self._next(mine))
        if most > 1:
            head_s = self.vocabulary.head.seconds - head_s
            self.vocabulary.took(time.perf_counter() - start, head_s, most - 1)
        return Draft(said, MODEL_KIND, self.vocabulary.head.left_out())

    def _caught_up(self, sequence: Sequence) -> Sequence:
        """Its own sequence with the tokens of another; what it computed of others than these counts no more."""
        if sequence.id not in self.mine:
            params = SamplingParams(max_new_tokens=1)
            self.mine[sequence.id] = make_sequence(sequence.id, sequence.tokens[:1], params)
        mine = self.mine[sequence.id]
        same, limit = mine.prompt_tokens, min(mine.computed, len(sequence.tokens) - 1)
        while same < limit and mine.tokens[same] == sequence.tokens[same]:
            same += 1
        mine.computed = min(same, limit)
        mine.tokens = list(sequence.tokens)
        mine.prompt_tokens = len(mine.tokens)  # what the sequence has stays as it is: these are not compared again
        return mine

    def _next(self, mine: Sequence) -> int:
        """The likeliest token behind its tokens."""
        head = self.vocabulary.head
        while True:
            before = head.read
            batch = Batch([mine], [min(mine.pending, self.chunk)])
            with torch.inference_mode(), self.main.current():
                out = self.decoder.forward(make_inputs(batch))
                ids = self.main.ops.argmax(out.logits)[1].tolist() if batch.ready else []
            self.main.wait()
            mine.computed += batch.counts[0]
            if ids:
                self.made += Guesses(1, head.rows, read_of(out, head.read - before))
                return head.token(int(ids[0]))

    def forget(self, sequence: Sequence) -> None:
        """Gives its pages back."""
        self.vocabulary.forget(sequence)
        mine = self.mine.pop(sequence.id, None)
        if mine is not None:
            self.pages.release(mine.pages)
