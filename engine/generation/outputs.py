"""What a caller gets back: a `Completion`, or `Chunk`s of one while it grows."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..ledger.passes import Pass


@dataclass(frozen=True)
class Likely:
    """How likely a token was: its logarithm, and the likeliest tokens with theirs, in falling order."""

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One finished request.

    text: the completion without stop string and special tokens ("" without a tokenizer). token_ids: every generated
    token, an end token included. finish_reason: "stop" (end token or stop string), "length" or "interrupted".
    prompt_tokens: tokens of the prompt; reused_tokens of them were in the KV cache already. ledger: the forward passes
    that it took part in (of more than 4096 the last), see `headrace.engine.ledger.passes`. logprobs: of each token, if
    `SamplingParams.logprobs` asked for them.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    reused_tokens: int
    ledger: list[Pass] = field(repr=False)  # hundreds of lines, where a notebook shows an answer
    logprobs: list[Likely] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A step of a stream: new text (may be empty), the token behind it, and on the last chunk why it ended; how likely
    the token was, if that was asked; at: when the pass that gave the token ended, in seconds of `time.monotonic`."""

    text: str
    token_id: int
    finish_reason: str | None = None
    likely: Likely | None = None
    at: float = field(default=0.0, compare=False, repr=False)
