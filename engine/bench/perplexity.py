"""Perplexity of a text: how well the model predicts it, the one number that shows what quantisation costs.

The text is cut into windows that do not overlap; the first token of a window has nothing before it and is not scored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ...errors import OptionError
from ..llm import LLM


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log likelihood over `tokens` scored tokens."""

    value: float
    tokens: int


def check(token_ids: list[int], window: int, limit: int) -> None:
    """Raises OptionError if there is nothing to score, or the context of `limit` tokens holds no window."""
    if window < 2 or len(token_ids) < 2:
        raise OptionError(
            f"{len(token_ids)} tokens in windows of {window}: at least 2 tokens a window are needed, give more text"
        )
    if window > limit:
        raise OptionError(f"window is {window}, the context holds {limit} tokens: choose a smaller window")


def perplexity(llm: LLM, token_ids: list[int], window: int = 512) -> Perplexity:
    """Perplexity of token ids in windows of `window` tokens; raises what `check` raises."""
    check(token_ids, window, llm.parts.kv_budget.max_context)
    loss, count = 0.0, 0
    for start in range(0, len(token_ids) - 1, window):
        ids = token_ids[start : start + window]
        if len(ids) < 2:
            break
        scores = llm.logits(ids)[:-1].log_softmax(-1)
        loss -= float(scores.gather(1, torch.tensor(ids[1:]).unsqueeze(1)).double().sum())
        count += len(ids) - 1
    return Perplexity(math.exp(loss / count), count)
