"""Logits after every token of a text: in prefill chunks, beside the schedule, outside of the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ....errors import MemoryNeeded
from ...generation.schedule.batch import Batch
from ...generation.schedule.inputs import make_inputs
from ...generation.schedule.kept_states import Keeps
from ...generation.sequence import Sequence
from ...model.kv_cache import pages_for
from ...model.segment import CacheLost

if TYPE_CHECKING:
    from ..loop import Loop


def all_logits(loop: Loop, sequence: Sequence) -> Tensor:
    """float32 [tokens, vocabulary]; anew where layers on other machines lost their cache meanwhile. Raises MemoryNeeded
    where open requests leave no room for it. The caller has the turn."""
    while True:
        loop.look_after_layers()
        try:
            return _once(loop, sequence)
        except CacheLost:
            sequence.computed = 0


def _once(loop: Loop, sequence: Sequence) -> Tensor:
    need, free = loop.windows.tightest(len(sequence.tokens), loop.pages)
    if need > free:
        raise MemoryNeeded(
            f"{len(sequence.tokens)} tokens need {need} pages of the KV cache, {free} are "
            "free: finish or close open streams first"
        )
    sequence.pages = loop.pages.allocate(pages_for(len(sequence.tokens)))
    sequence.windows = loop.windows.start()
    sequence.slot = -1 if loop.states is None else loop.states.spare
    try:
        return torch.cat(list(_chunks(loop, sequence)))
    finally:
        loop.pages.release(sequence.pages)
        loop.windows.release(sequence.windows)


def _chunks(loop: Loop, sequence: Sequence) -> Iterator[Tensor]:
    parts = loop.parts
    keeps: Keeps | None = None if loop.states is None else {}
    if parts.expert_cache is not None:
        parts.expert_cache.begin(0)
    while sequence.pending:
        count = min(sequence.pending, parts.config.prefill_chunk)
        batch = Batch([sequence], [count])
        loop.windows.extend(sequence.windows, sequence.computed + count)
        with torch.inference_mode(), parts.main.current():
            logits = parts.decoder.forward(make_inputs(batch, True, keeps)).logits.cpu()
        sequence.computed += count
        loop.windows.advance(sequence.windows, sequence.computed, [])
        yield logits
