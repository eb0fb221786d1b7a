"""Logits -> one token per sequence: penalties, temperature, top-k, top-p, min-p, in this order.

Every sequence has its own generator, so that what it draws does not depend on its neighbours in the batch. Knows logits
and tokens, no model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import HeadraceError
from .sequence import Sequence


def sample(logits_SV: Tensor, sequences: list[Sequence]) -> list[int]:
    """The next token of each sequence from its row of logits float32 [S, V]; the logits are not changed."""
    best = logits_SV.max(dim=-1)
    if not bool(torch.isfinite(best.values).all()):
        raise HeadraceError(
            "the model gave logits that are not finite: its weights are damaged, or do not fit its config; "
            "check the files, or compare with --kernels reference"
        )
    greedy: list[int] = best.indices.tolist()
    return [greedy[i] if s.params.is_plain_greedy else _sample_one(logits_SV[i], s) for i, s in enumerate(sequences)]


def _sample_one(logits_V: Tensor, sequence: Sequence) -> int:
    params = sequence.params
    logits_V = penalise(logits_V, sequence)
    if params.temperature == 0:
        return int(logits_V.argmax())
    logits_V = logits_V / params.temperature
    values, ids = _candidates(logits_V, params.top_k)
    probabilities = values.softmax(-1)
    keep = _nucleus(probabilities, params.top_p) & (probabilities >= params.min_p * probabilities[0])
    probabilities = probabilities * keep
    drawn = torch.multinomial(probabilities, 1, generator=sequence.generator)
    return int(ids[drawn])


def penalise(logits_V: Tensor, sequence: Sequence) -> Tensor:
    """Logits with the penalties applied: repetition over prompt and completion, presence over the completion."""
    params = sequence.params
    if params.repetition_penalty != 1:
        seen = torch.tensor(sequence.tokens).unique()
        before = logits_V[seen]
        scale = params.repetition_penalty
        logits_V = logits_V.clone()
        logits_V[seen] = torch.where(before > 0, before / scale, before * scale)
    if params.presence_penalty != 0 and sequence.completion:
        seen = torch.tensor(sequence.completion).unique()
        logits_V = logits_V.clone()
        logits_V[seen] -= params.presence_penalty
    return logits_V


def _candidates(logits_V: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The top k logits and their ids in falling order; k = 0: all of them."""
    k = min(top_k or len(logits_V), len(logits_V))
    found = logits_V.topk(k)
    return found.values, found.indices


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """The shortest run of the most probable tokens whose sum reaches top_p; the first is always kept."""
    before = probabilities.cumsum(-1) - probabilities
    keep: Tensor = before < top_p
    keep[0] = True
    return keep
