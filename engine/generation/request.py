"""A request: its sequence, the text that grows from it, and the chunks that nobody has taken yet.

Several requests run in the same passes, so what a pass gives one of them waits here until its owner asks. Decides when
a completion ends; knows tokens and text, no model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol

from ..ledger.summary import Account
from .outputs import Chunk, Completion
from .sequence import Sequence


class GrowingText(Protocol):
    """What tokens become: `stop_strings.TextBuilder`, or what a server reads out of them besides."""

    @property
    def text(self) -> str:
        """All of it so far."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""

    def push(self, token: int) -> str:
        """Adds a token; returns the text that can be shown now. Sets `stopped` once a stop string was completed."""

    def finish(self) -> str:
        """What was held back, after the last token."""


@dataclass
class Request:
    """One prompt under way."""

    sequence: Sequence
    text: GrowingText
    chunks: deque[Chunk] = field(default_factory=deque)
    account: Account = field(default_factory=Account)  # of the passes that it took part in
    error: BaseException | None = None  # that ended it
    keep: Callable[[list[int]], None] | None = None  # takes the new tokens at the end
    is_open: bool = True  # more will come; False once all is there: readers in other threads leave then

    def push(self, eos_ids: Collection[int], at: float = 0.0) -> None:
        """Decides whether the completion ends with its newest token, and puts that token's text into a chunk. at: when
        its pass ended. One that failed has no new token, and ends."""
        sequence, params = self.sequence, self.sequence.params
        if sequence.failure is not None:
            self._fail(sequence.failure)
            return
        token = sequence.tokens[-1]
        ends = token in params.stop_token_ids or (token in eos_ids and not params.ignore_eos)
        piece = "" if ends else self.text.push(token)
        if ends or self.text.stopped:
            sequence.finish_reason = "stop"
        elif len(sequence.completion) >= params.max_new_tokens:
            sequence.finish_reason = "length"
        if sequence.finish_reason is not None:
            piece += self.text.finish()
            if self.text.stopped:  # found in what was held back until now
                sequence.finish_reason = "stop"
        likely = sequence.logprobs[-1] if sequence.logprobs else None
        reason = sequence.finish_reason
        self.chunks.append(Chunk(text=piece, token_id=token, finish_reason=reason, likely=likely, at=at))
        if sequence.finish_reason is not None:
            self._ended()

    def _fail(self, error: BaseException) -> None:
        """Ends it where it is, with an error for whoever reads it."""
        self.error = error
        self.interrupt()

    def interrupt(self) -> None:
        """Ends it where it is."""
        self.sequence.finish_reason = "interrupted"
        self._ended()

    def _ended(self) -> None:
        try:
            if self.keep is not None:
                self.keep(self.sequence.completion)
        finally:
            self.is_open = False

    def completion(self) -> Completion:
        """What there is so far."""
        sequence = self.sequence
        return Completion(
            text=self.text.text,
            token_ids=sequence.completion,
            finish_reason=sequence.finish_reason or "interrupted",
            prompt_tokens=sequence.prompt_tokens,
            reused_tokens=sequence.reused,
            ledger=list(self.account.recent),
            logprobs=list(sequence.logprobs),
        )
