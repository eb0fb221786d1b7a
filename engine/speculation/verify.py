"""Which tokens of drafts hold: the sampler draws behind each of them, until it draws another one.

A guess is one token for each place, said before. So to draw from the model's distribution and keep the guess where it
is what was drawn is the rule of rejection sampling: it is accepted with its probability p, and what comes else has the
distribution without it. Penalties, grammars, likelihoods and the sequence's own random numbers see each token as if
it had a pass of its own, so that even sampled text is that of a run without drafts.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ...kernels import Ops
from ..generation.schedule.batch import Batch
from ..generation.sequence import Sequence

Draw = Callable[[Tensor, list[Sequence], Ops], list[int]]


def first_rows(logits_RV: Tensor, batch: Batch) -> tuple[Tensor, list[int]]:
    """Logits behind the last token of each sequence that is ready, and where those rows are among all of them."""
    starts, row = [], 0
    for i in batch.ready:
        starts.append(row)
        row += batch.rows_of(i)
    return (logits_RV[starts] if batch.drafts else logits_RV), starts


def accept(
    logits_RV: Tensor,
    batch: Batch,
    starts: list[int],
    draw: Draw,
    ops: Ops,
    take: Callable[[Sequence, int], bool],
) -> dict[int, int]:
    """Goes on behind the first tokens that were drawn, which the sequences have: draws behind each token of a draft
    that came true. take: gives a sequence its next token, and says whether it goes on. Returns how many tokens of each
    draft hold, by number of the sequence in the batch."""
    rows = dict(zip(batch.ready, starts, strict=True))
    held = dict.fromkeys(batch.drafts, 0)
    going = [i for i in batch.drafts if batch.sequences[i].finish_reason is None]
    while going := [i for i in going if _holds(batch, i, held[i])]:
        for i in going:
            held[i] += 1
        sequences = [batch.sequences[i] for i in going]
        drawn = draw(logits_RV[[rows[i] + held[i] for i in going]], sequences, ops)
        goes_on = [take(sequence, token) for sequence, token in zip(sequences, drawn, strict=True)]
        going = [i for i, on in zip(going, goes_on, strict=True) if on]
    return held


def _holds(batch: Batch, number: int, held: int) -> bool:
    """Whether the next token of a draft is what was drawn last."""
    draft = batch.drafts[number]
    return held < len(draft) and draft[held] == batch.sequences[number].tokens[-1]
