"""A request as handlers see it: events as they come, and at its end what they need for an answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from ...loaders.tokens.dialects.events import Event
from ..generation.answer_text import AnswerText
from ..generation.outputs import Chunk
from ..generation.request import Request
from .reports.gaps import Gaps
from .wire.errors import ApiError, engine_failed

SILENT_S = 5.0  # after which a stream shows that it lives
# Whose request is answered, in the task that does: what its client calls itself.
CLIENT: ContextVar[str] = ContextVar("client", default="")
MOST_UNREAD = 4096  # tokens that wait for a reader, after which it is gone or too slow


@dataclass
class News:
    """What came since the last time: events, and the tokens behind them; how far the prompt is, where that is wanted
    and new. All empty: nothing, for SILENT_S."""

    events: list[Event] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    progress: dict[str, Any] | None = None


class Generation:
    """One answer that is being made. cancel: ends it, if it has not ended. shows_progress: news tell how far the prompt
    is."""

    def __init__(
        self,
        request: Request,
        text: AnswerText,
        cancel: Callable[[Generation], None],
        shows_progress: bool = False,
    ) -> None:
        self.request, self.text, self._cancel, self.shows_progress = request, text, cancel, shows_progress
        self.client = CLIENT.get()
        self._shown = -1  # tokens of the prompt that were computed when that was last told
        self.submitted = time.monotonic()
        self.first: float | None = None  # when the pass of its first token ended
        self.last: float | None = None
        self.tokens = 0  # that were read
        self.gaps = Gaps()  # between its tokens
        self._waiting: asyncio.Future[bool] | None = None  # whoever reads `news` and has all that there is

    def wake(self) -> None:
        """Says that there may be news; from the thread of handlers."""
        if self.first is None and self.request.chunks:
            self.first = self.request.chunks[0].at
        if len(self.request.chunks) > MOST_UNREAD:
            self.cancel()
        self._ring(True)

    def cancel(self) -> None:
        """Ends it; what was made stays."""
        self._cancel(self)

    async def news(self) -> AsyncGenerator[News, None]:
        """What comes, pass by pass; raises what ended the request in an error. However it is left, the request ends."""
        try:
            while True:
                is_open = self.request.is_open
                found = self._drain()
                if found.events or found.chunks or found.progress:
                    yield found
                elif not is_open:
                    break
                elif not await self._woken():
                    yield News()
            if self.request.error is not None:
                raise engine_failed(self.request.error)
            constraint = self.request.sequence.constraint
            if constraint is not None and constraint.error:
                raise ApiError(400, f"the grammar could not be followed: {constraint.error}")
        finally:
            self.cancel()

    async def _woken(self) -> bool:
        """Waits for `wake`; False when it did not come for SILENT_S. A future and a timer: `asyncio.wait_for` makes a
        task of every wait, and what is done here is done between two tokens, on cores that the experts use."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[bool] = loop.create_future()
        self._waiting = waiting
        timer = loop.call_later(SILENT_S, self._ring, False)
        try:
            return await waiting
        finally:
            timer.cancel()
            self._waiting = None

    def _ring(self, found: bool) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(found)

    def _drain(self) -> News:
        found = News()
        while self.request.chunks:
            found.chunks.append(self.request.chunks.popleft())
        while self.text.events:
            found.events.append(self.text.events.popleft())
        self.tokens += len(found.chunks)
        self._time([chunk.at for chunk in found.chunks])
        if self.shows_progress:
            found.progress = self._progress()
        return found

    def _time(self, ends: list[float]) -> None:
        """Tokens came, of passes that ended then. Those of one pass share what it took."""
        for end, group in groupby(ends):
            count = len([*group])
            if self.last is not None:
                self.gaps.add((end - self.last) / count, count)
            elif count > 1:
                self.gaps.add(0.0, count - 1)
            self.last = end
            self.first = self.first or end

    def _progress(self) -> dict[str, Any] | None:
        """How far the prompt is, by llama.cpp's names, cached tokens included; None where that is known already. One
        that makes room for another stays where it was until it is further again."""
        sequence = self.request.sequence
        done = min(sequence.computed, sequence.prompt_tokens)
        if sequence.admitted is None or done <= self._shown:
            return None
        self._shown = done
        seconds = time.monotonic() - self.submitted - self.queued_s
        return {
            "total": sequence.prompt_tokens,
            "cache": sequence.reused,
            "processed": done,
            "time_ms": round(seconds * 1e3),
        }

    # ---- what an answer says of it

    @property
    def finish_reason(self) -> str:
        """As OpenAI's API has it: "tool_calls" exactly where there are calls that can be made."""
        if self.text.has_calls and not self.text.is_call_cut:
            return "tool_calls"
        return "length" if self.request.sequence.finish_reason == "length" else "stop"

    @property
    def prompt_tokens(self) -> int:
        return self.request.sequence.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were in the cache already."""
        return self.request.sequence.reused

    @property
    def queued_s(self) -> float:
        """Seconds before it first ran; until now, where it has not."""
        sequence = self.request.sequence
        return max(0.0, (sequence.admitted or time.monotonic()) - self.submitted)
