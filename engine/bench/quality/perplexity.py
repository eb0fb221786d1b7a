"""Perplexity of a text: how well the model predicts it, the one number that shows what quantisation costs.

The text is cut into windows, of which each begins `stride` tokens behind the last. A window scores the tokens that no
earlier one did, so every token is scored once, with at least window - stride tokens before it but at the text's start.
With a stride of a whole window none overlap, and the first token of each has nothing before it and is not scored.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ....errors import OptionError
from ...llm import LLM

WINDOW = 512


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """exp of the mean negative log-likelihood over `tokens` scored tokens.

    nll: that mean, in nats. nll_error: its standard error, from the spread of tokens taken as independent; error: that
    of the value; None for one token. bits_per_byte: of the text; None where its bytes are not known. tok_s: tokens that
    went through the model a second, logits of all of them included. window, stride: tokens.
    """

    value: float
    error: float | None
    tokens: int
    nll: float
    nll_error: float | None
    bits_per_byte: float | None
    tok_s: float
    window: int
    stride: int


class Scores(NamedTuple):
    """Negative log-likelihoods of scored tokens in nats, float64 [scored], of so many `tokens` in all; how they came
    about, as in `Perplexity`."""

    losses_S: Tensor
    tokens: int
    window: int
    stride: int
    tok_s: float


class Window(NamedTuple):
    """Tokens `start` to `end` of a text, of which those from `scored` on are scored."""

    start: int
    scored: int
    end: int


def windows(count: int, window: int, stride: int) -> Iterator[Window]:
    """The windows over so many tokens that score any."""
    done = 0
    for start in range(0, count, stride):
        end = min(start + window, count)
        found = Window(start, max(done, start + 1), end)
        if found.scored < end:
            yield found
        if end == count:
            return
        done = end


def check(token_ids: list[int], window: int, limit: int, stride: int | None = None) -> None:
    """Raises OptionError if there is nothing to score, a stride leaves tokens out, or the context of `limit` tokens
    holds no window."""
    if window < 2 or len(token_ids) < 2:
        raise OptionError(
            f"{len(token_ids)} tokens in windows of {window}: at least 2 tokens a window are needed, give more text"
        )
    if window > limit:
        raise OptionError(f"window is {window}, the context holds {limit} tokens: choose a smaller window")
    if stride is not None and not 1 <= stride <= window:
        raise OptionError(f"stride is {stride} with windows of {window} tokens: give 1 to {window}")


def perplexity(
    llm: LLM, token_ids: list[int], window: int = WINDOW, stride: int | None = None, text_bytes: int | None = None
) -> Perplexity:
    """Perplexity of token ids in windows of `window` tokens, each `stride` behind the last; None: a window. text_bytes:
    of the text that all ids stand for. Raises what `check` raises."""
    return of_scores(score(llm, token_ids, window, stride), text_bytes)


def score(llm: LLM, token_ids: list[int], window: int = WINDOW, stride: int | None = None) -> Scores:
    """How likely each token is; arguments as of `perplexity`."""
    check(token_ids, window, llm.parts.kv_budget.max_context, stride)
    step = window if stride is None else stride
    losses, computed, start = [], 0, time.perf_counter()
    for one in windows(len(token_ids), window, step):
        losses.append(_losses(llm, token_ids[one.start : one.end], one.scored - one.start))
        computed += one.end - one.start
    seconds = time.perf_counter() - start
    return Scores(torch.cat(losses), len(token_ids), window, step, computed / seconds)


def of_scores(scores: Scores, text_bytes: int | None = None) -> Perplexity:
    """The perplexity of scored tokens; text_bytes: of the text."""
    nll, nll_error = mean(scores.losses_S)
    value = math.exp(nll)
    return Perplexity(
        value=value,
        error=None if nll_error is None else value * nll_error,
        tokens=len(scores.losses_S),
        nll=nll,
        nll_error=nll_error,
        bits_per_byte=None if text_bytes is None else nll / math.log(2) * scores.tokens / text_bytes,
        tok_s=scores.tok_s,
        window=scores.window,
        stride=scores.stride,
    )


def change(scores: Scores, base: Scores) -> tuple[float, float | None]:
    """How much larger the perplexity of the same tokens is than in `base`, as a share, and its standard error. From
    the differences of each token: what a token is like falls out, so that far less than both errors can be told."""
    difference, error = mean(scores.losses_S - base.losses_S)
    ratio = math.exp(difference)
    return ratio - 1, None if error is None else ratio * error


def mean(values_S: Tensor) -> tuple[float, float | None]:
    """The mean of values, and its standard error from their spread; None for one value."""
    count = len(values_S)
    return float(values_S.mean()), float(values_S.std()) / math.sqrt(count) if count > 1 else None


def _losses(llm: LLM, ids: list[int], first: int) -> Tensor:
    """Negative log-likelihoods of a window's tokens from `first` on: float64 [tokens]."""
    scores = llm.logits(ids)[first - 1 : -1].log_softmax(-1)
    return -scores.gather(1, torch.tensor(ids[first:]).unsqueeze(1)).double().squeeze(1)
