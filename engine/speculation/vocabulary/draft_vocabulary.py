"""Among how many tokens a model that drafts chooses, and what a guess takes by that: each draft as it pays best.

    seconds of a guess = what it takes besides the head, and rows of the head * seconds of a row

Both are measured with drafts; before the first, those of the model's own layer are what the bandwidth model says, and
those of a second model are not known.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from ...generation.sequence import Sequence
from ...model.decoder import Decoder
from ...planning.own_layer import draft_rows
from . import draft_head
from .coverage import Coverage
from .draft_head import DraftHead

NEWEST = 0.2  # weight of the newest draft in what a token takes


@dataclass(frozen=True)
class Way:
    """How drafts can be made. rows: of the head; token_s: seconds of a token; number: among the ways."""

    number: int
    rows: int
    token_s: float


class DraftVocabulary:
    """Of one model that drafts. head: what it multiplies. sizes: that can be chosen among, fewest tokens first. rest_s,
    row_s: seconds of a token besides the head, and of a row of it; 0: not known."""

    def __init__(self, head: DraftHead, sizes: Seq[int], rest_s: float = 0.0, row_s: float = 0.0) -> None:
        self.head, self.sizes = head, tuple(sizes)
        self.rest_s, self.row_s = rest_s, row_s
        self.is_measured = False
        self.of: dict[int, Coverage] = {}
        self.priors = [draft_rows.share(rows, head.vocab) for rows in self.sizes]
        self.use(self.sizes[-1])

    def use(self, rows: int) -> None:
        """From the next pass on."""
        self.head.rows = rows

    def ways(self) -> list[Way]:
        """Those there are, the one with most tokens last."""
        return [Way(i, rows, self.seconds(rows)) for i, rows in enumerate(self.sizes)]

    def seconds(self, rows: int) -> float:
        """Of a token that is chosen among so many."""
        return self.rest_s + self.row_s * draft_rows.read_rows(rows, self.head.vocab)

    def shares(self, sequence: Sequence) -> list[float]:
        """By way how much of a text its tokens are."""
        if len(self.sizes) == 1 and self.sizes[0] == self.head.vocab:
            return [1.0]
        if sequence.id not in self.of:
            others = range(self.head.vocab - self.head.last, self.head.vocab)
            self.of[sequence.id] = Coverage(self.sizes, [*self.priors, 1.0], others)
        found = self.of[sequence.id]
        found.take_in(sequence.tokens)
        return found.shares()[: len(self.sizes)]

    def took(self, seconds: float, head_s: float, tokens: int) -> None:
        """Takes in what a draft of so many tokens took, and the head of that."""
        rows = draft_rows.read_rows(self.head.rows, self.head.vocab)
        rest_s, row_s = (seconds - head_s) / tokens, head_s / tokens / rows
        weight, self.is_measured = NEWEST if self.is_measured else 1.0, True
        self.rest_s += weight * (rest_s - self.rest_s)
        self.row_s += weight * (row_s - self.row_s)

    def forget(self, sequence: Sequence) -> None:
        """A sequence has ended."""
        self.of.pop(sequence.id, None)


def of_decoder(decoder: Decoder, asked: int | str, rest_s: float = 0.0, row_s: float = 0.0) -> DraftVocabulary:
    """Of a decoder that drafts from now on. asked: auto, all, or how many of the first tokens."""
    vocab = decoder.spec.vocab
    head = draft_head.put(decoder, draft_rows.last_rows(vocab))
    return DraftVocabulary(head, draft_rows.choices(asked, vocab), rest_s, row_s)
