"""Logits -> one token per sequence: penalties and bias, temperature, top-k, top-p, min-p, in this order.

Every sequence has its own generator, so that what it draws does not depend on its neighbours in the batch. Knows logits
and tokens, no model.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...errors import HeadraceError
from ...kernels import Ops
from ..config import SamplingParams
from .outputs import Likely
from .sequence import Sequence

SHORT_LIST = 1024


class WithArgmax:
    """Ops that know the argmax of one tensor of logits, as `argmax` gives it: a decode graph found it."""

    def __init__(self, ops: Ops, logits_SV: Tensor, found: tuple[Tensor, Tensor]) -> None:
        self.ops, self.logits_SV, self.found = ops, logits_SV, found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ops, name)

    def argmax(self, logits_SV: Tensor) -> tuple[Tensor, Tensor]:
        return self.found if logits_SV is self.logits_SV else self.ops.argmax(logits_SV)


def sample(logits_SV: Tensor, sequences: list[Sequence], ops: Ops) -> list[int]:
    """The next token of each sequence from its row of logits float32 [S, V]; the logits are not changed. A sequence
    whose logits are not finite gets its `failure` instead, and its token means nothing: the others are not to blame."""
    largest, ids = ops.argmax(logits_SV)
    greedy: list[int] = ids.tolist()
    for sequence, value in zip(sequences, largest.tolist(), strict=True):
        if not math.isfinite(value):
            sequence.failure = _not_finite()
    found = [
        _next(logits_SV, i, greedy[i], sequence) if sequence.failure is None else greedy[i]
        for i, sequence in enumerate(sequences)
    ]
    for i, sequence in enumerate(sequences):
        if sequence.params.logprobs is not None and sequence.failure is None:
            sequence.logprobs.append(_likely(logits_SV[i].cpu(), found[i], sequence.params.logprobs))
    return found


def _not_finite() -> HeadraceError:
    return HeadraceError(
        "the model gave logits that are not finite: its weights are damaged, or do not fit its config; "
        "check the files, or compare with --kernels reference"
    )


def _next(logits_SV: Tensor, row: int, greedy: int, sequence: Sequence) -> int:
    """The next token of a sequence, from its row of logits; greedy: the likeliest one."""
    constraint = sequence.constraint
    is_held = constraint is not None and constraint.is_awake
    if constraint is not None and is_held and len(sequence.tokens) > sequence.prompt_tokens:
        forced = constraint.next_forced()
        if forced is not None:  # nothing is drawn: later draws do not depend on how many passes there were
            return forced
    drawn = greedy if sequence.params.is_plain_greedy else _sample_one(logits_SV[row].cpu(), sequence)
    if constraint is None or not is_held:
        return drawn
    return constraint.settle(drawn, partial(_sample_among, logits_SV[row], sequence))


def _sample_among(logits_V: Tensor, sequence: Sequence, allowed_V: Tensor) -> int:
    """A token among those that are allowed."""
    logits_V = logits_V.cpu()
    barred_V = ~allowed_V[: len(logits_V)]
    return _sample_one(logits_V.masked_fill(barred_V, -torch.inf), sequence)


def _likely(logits_V: Tensor, token: int, count: int) -> Likely:
    """How likely a token was, and the likeliest ones."""
    logprobs_V = logits_V.log_softmax(-1)
    top = logprobs_V.topk(min(count, len(logprobs_V)))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return Likely(float(logprobs_V[token]), tuple(pairs))


def _sample_one(logits_V: Tensor, sequence: Sequence) -> int:
    params = sequence.params
    logits_V = penalise(logits_V, sequence)
    if params.is_greedy:
        return int(logits_V.argmax())
    probabilities, ids = _candidates(_heated(logits_V, params.temperature).softmax(-1), params)
    drawn = int(torch.multinomial(probabilities, 1, generator=sequence.generator))
    return drawn if ids is None else int(ids[drawn])


def penalise(logits_V: Tensor, sequence: Sequence) -> Tensor:
    """Logits with the penalties applied: repetition over prompt and completion, presence and frequency over the
    completion; then the bias, and no end before the least number of tokens."""
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
    if params.frequency_penalty != 0 and sequence.completion:
        seen, counts = torch.tensor(sequence.completion).unique(return_counts=True)
        logits_V = logits_V.clone()
        logits_V[seen] -= params.frequency_penalty * counts
    return _biased(logits_V, sequence)


def _biased(logits_V: Tensor, sequence: Sequence) -> Tensor:
    params = sequence.params
    barred = (*sequence.ends, *params.stop_token_ids) if len(sequence.completion) < params.min_tokens else ()
    if not params.logit_bias and not barred:
        return logits_V
    logits_V = logits_V.clone()
    for token, bias in (params.logit_bias or {}).items():
        logits_V[token] += bias
    logits_V[list(barred)] = -torch.inf
    return logits_V


def _heated(logits_V: Tensor, temperature: float) -> Tensor:
    """Logits over the temperature; the largest becomes 0 first, so that no temperature is too small to divide by."""
    return (logits_V - logits_V.max()) / max(temperature, 1e-30)


def _candidates(probabilities_V: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor | None]:
    """Probabilities (not normalised) that may be drawn, and their ids; None: all tokens in order."""
    if params.top_k == 0 and params.top_p == 1:
        return _above(probabilities_V, params.min_p), None
    values, ids = _most_probable(probabilities_V, params)
    if params.top_k:
        values = values / values.sum()
    values = values * _nucleus(values, params.top_p)
    return _above(values, params.min_p), ids


def _most_probable(probabilities_V: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """The top k in falling order; without a k a short list, or all where that does not reach top_p. Sorting a whole
    vocabulary takes longer than the rest of sampling together."""
    size = len(probabilities_V)
    found = probabilities_V.topk(min(params.top_k or SHORT_LIST, size))
    if params.top_k == 0 and found.values.sum() < params.top_p:
        found = probabilities_V.topk(size)
    return found.values, found.indices


def _above(probabilities: Tensor, min_p: float) -> Tensor:
    """min-p: what is less probable than min_p times the most probable is not drawn."""
    return probabilities if min_p == 0 else probabilities * (probabilities >= min_p * probabilities.max())


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """The shortest run of the most probable tokens whose sum reaches top_p; the first is always kept."""
    before = probabilities.cumsum(-1) - probabilities
    keep: Tensor = before < top_p
    keep[0] = True
    return keep
