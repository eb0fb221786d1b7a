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
from ..model.decoder import Decoder
from ..model.kv_cache import PageTable, pages_for
from .drafter import MODEL_KIND, Draft

NEWEST = 0.2  # weight of the newest draft in what a token takes


class DraftModel:
    """pages: of its cache; chunk: most tokens of one pass; max_context: longest text that it drafts for."""

    is_free: Literal[False] = False
    kind = MODEL_KIND

    def __init__(self, decoder: Decoder, main: Device, pages: PageTable, chunk: int, max_context: int) -> None:
        self.decoder, self.main, self.pages = decoder, main, pages
        self.chunk, self.max_context = chunk, max_context
        self.token_s = 0.0
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
        start = time.perf_counter()
        for _ in range(most - 1):
            mine.tokens.append(said[-1])
            said.append(self._next(mine))
        if most > 1:
            took = (time.perf_counter() - start) / (most - 1)
            self.token_s += (took - self.token_s) * (NEWEST if self.token_s else 1.0)
        return Draft(said, MODEL_KIND)

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
        while True:
            batch = Batch([mine], [min(mine.pending, self.chunk)])
            with torch.inference_mode(), self.main.current():
                logits = self.decoder.forward(make_inputs(batch)).logits
                ids = self.main.ops.argmax(logits)[1].tolist() if batch.ready else []
            self.main.wait()
            mine.computed += batch.counts[0]
            if ids:
                return int(ids[0])

    def forget(self, sequence: Sequence) -> None:
        """Gives its pages back."""
        mine = self.mine.pop(sequence.id, None)
        if mine is not None:
            self.pages.release(mine.pages)
