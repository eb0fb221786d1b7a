"""What a caller of a chat gets back: a `ChatCompletion`, or the events of one while it grows."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

from ...loaders.tokens.dialects.events import Event
from .answer_text import AnswerText
from .blocks import THINKING, Blocks
from .outputs import Chunk, Completion


@dataclass(frozen=True, kw_only=True)
class ChatCompletion(Completion):
    """One answer of a chat.

    text: what the model says. reasoning: what it thought before. tool_calls: the tools it calls, as OpenAI's API has
    them, arguments as JSON text. message: all of it, to be put into the conversation. Stop strings count in `text`.
    """

    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message of the conversation."""
        parts = {"reasoning_content": self.reasoning, "tool_calls": self.tool_calls}
        return {"role": "assistant", "content": self.text, **{key: value for key, value in parts.items() if value}}


class ChatStream(Iterator[Event]):
    """Yields the events of one answer as they come. `close` ends it early; `result` is the answer so far."""

    def __init__(
        self, chunks: Generator[Chunk, None, None], completion: Callable[[], Completion], text: AnswerText
    ) -> None:
        self._chunks, self._completion, self._text = chunks, completion, text
        self._blocks = Blocks()

    def __next__(self) -> Event:
        while not self._text.events:
            next(self._chunks)
        return self._take()

    def _take(self) -> Event:
        event = self._text.events.popleft()
        self._blocks.gather([event])
        return event

    def close(self) -> None:
        """Ends the answer; its finish_reason is "interrupted" unless it had ended by itself."""
        self._chunks.close()

    def rest(self) -> list[Event]:
        """What was held back when the answer was closed."""
        if self._completion().finish_reason == "interrupted":
            self._text.finish()
        return [self._take() for _ in range(len(self._text.events))]

    @property
    def result(self) -> ChatCompletion:
        """The answer so far."""
        made = self._completion()
        return ChatCompletion(**vars(made), reasoning=self._blocks.text_of(THINKING), tool_calls=self._blocks.calls)
