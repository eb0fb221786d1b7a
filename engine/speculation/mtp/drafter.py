"""The drafter that a model brings with it: its layer for multi-token prediction, asked again for each token of a draft.

The model hands out its hidden states behind each pass (`saw`). The layer takes those of prompts in as they come, those
of text when a draft is wanted. Its keys and values lie under the numbers of the model's pages, so that a prompt that
takes pages over takes those of the layer, too: of the last token of a page they are of the text that went on there
first. What is missing or wrong there makes worse guesses, never another text.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ...config import SamplingParams
from ...generation.schedule.batch import Batch
from ...generation.schedule.inputs import make_inputs
from ...generation.sequence import Sequence, make_sequence
from ...ledger import guesses
from ...ledger.guesses import Guesses
from ...model.kv_cache import PAGE
from ...planning.own_layer.waiting_rows import MANY
from ..drafter import MTP_KIND, Draft
from ..vocabulary.draft_head import read_of
from ..vocabulary.draft_vocabulary import DraftVocabulary
from .layer import MtpLayer
from .waiting import Waiting


class MtpDrafter:
    """Of one model and its layer. known: by sequence what the layer has of it."""

    is_free: Literal[False] = False
    kind = MTP_KIND

    def __init__(self, layer: MtpLayer, vocabulary: DraftVocabulary) -> None:
        self.layer, self.vocabulary = layer, vocabulary
        self.made = guesses.NONE
        self.known: dict[int, Waiting] = {}

    def saw(self, sequences: Seq[Sequence], starts: Seq[int], hidden: Seq[Tensor]) -> None:
        """Takes in a pass: of each sequence the position of its first new token, and the states of tokens that hold,
        float32 [tokens, hidden]."""
        for sequence, start, hidden_TD in zip(sequences, starts, hidden, strict=True):
            if sequence.id not in self.known:
                mine = make_sequence(sequence.id, [], SamplingParams(max_new_tokens=1))
                self.known[sequence.id] = Waiting(mine, sequence, start)
            self.known[sequence.id].add(sequence, start, hidden_TD)
        self._take_in([one for s in sequences if (one := self.known[s.id]).waits >= MANY])

    def _take_in(self, many: list[Waiting]) -> None:
        """Computes keys and values of all that waits, and nothing else."""
        if many:
            self._pass(many, wants_logits=False)

    def _pass(self, many: list[Waiting], wants_logits: bool = True) -> tuple[list[int], Tensor | None]:
        """One pass of what waits: the likeliest token behind the last of each, and the states there."""
        batch = Batch([one.mine for one in many], [one.waits for one in many])
        inputs = make_inputs(batch)
        hidden_TD = torch.cat([one.take() for one in many])
        if not wants_logits:
            inputs = replace(inputs, rows=inputs.rows[:0])
        main, head = self.layer.main, self.vocabulary.head
        before = head.read
        with torch.inference_mode(), main.current():
            out = self.layer.forward(inputs, hidden_TD)
            ids = main.ops.argmax(out.logits)[1].tolist() if wants_logits else []
        main.wait()
        if wants_logits:
            self.made += Guesses(1, head.rows, read_of(out, head.read - before))
        for sequence, count in zip(batch.sequences, batch.counts, strict=True):
            sequence.computed += count
        return [head.token(int(index)) for index in ids], out.hidden

    def draft_all(self, asked: Seq[tuple[Sequence, int]]) -> list[Draft | None]:
        """Of sequences up to so many tokens each; None where the state before the last token is not known."""
        found: list[Draft | None] = [None] * len(asked)
        going = [(i, most) for i, (sequence, limit) in enumerate(asked) if (most := self._most(sequence, limit)) > 0]
        if not going:
            return found
        start, head_s = time.perf_counter(), self.vocabulary.head.seconds
        mine = {i: self.known[asked[i][0].id] for i, _ in going}
        true = {i: one.end for i, one in mine.items()}
        said: dict[int, list[int]] = {i: [] for i in mine}
        while going:
            tokens, hidden_TD = self._pass([mine[i] for i, _ in going])
            assert hidden_TD is not None, "a pass without states"
            for row, (i, _) in enumerate(going):
                said[i].append(tokens[row])
                mine[i].mine.tokens.append(tokens[row])
                mine[i].rows.append(hidden_TD[row : row + 1])
            going = [(i, most) for i, most in going if len(said[i]) < most]
        for i, one in mine.items():
            one.rows.clear()  # guesses: the next true states come in their places
            one.mine.computed = true[i]
            found[i] = Draft(said[i], self.kind, self.vocabulary.head.left_out())
        head_s = self.vocabulary.head.seconds - head_s
        self.vocabulary.took(time.perf_counter() - start, head_s, sum(map(len, said.values())))
        return found

    def _most(self, sequence: Sequence, limit: int) -> int:
        """Tokens that can be drafted: 0 where the layer is not as far as the sequence; no more than there are pages
        for, as others may need those that are free."""
        one = self.known.get(sequence.id)
        if one is None or not one.is_of(sequence) or one.end != len(sequence.tokens) - 1 or not one.waits:
            return 0
        return min(limit, len(sequence.pages) * PAGE - one.end + 1)

    def forget(self, sequence: Sequence) -> None:
        """A sequence has ended. What waits of it is taken in, as long as it has its pages: the next turn of a
        conversation goes on from them."""
        self.vocabulary.forget(sequence)
        one = self.known.pop(sequence.id, None)
        if one is not None and sequence.pages and one.is_of(sequence) and one.waits:
            self._take_in([one])
