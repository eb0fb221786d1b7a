"""POST /v1/completions: OpenAI's older API, which continues text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ....loaders.tokens.dialects.events import Event, Text
from ...config import SamplingParams
from ...generation.outputs import Chunk
from ..generation import Generation
from ..service import PromptAsk
from . import fields, usage
from .chat import Gathered
from .errors import bad_request
from .logprobs import completion_logprobs

MOST_PROMPTS = 64
DEFAULT_NEW = 16  # of OpenAI's API, where nothing is said


class CompletionRequest(fields.Streamed, kw_only=True):
    """The body of a request."""

    prompt: str | list[str | int | list[int]]
    max_tokens: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    add_special_tokens: bool | None = None


def prompts_of(asked: CompletionRequest) -> list[PromptAsk]:
    """The prompts; raises ApiError for what cannot be done."""
    if asked.suffix:
        raise bad_request("suffix is not supported: give the text before it alone", "suffix")
    if asked.best_of not in (None, 1):
        raise bad_request("best_of is not supported: leave it out", "best_of")
    if asked.echo and asked.logprobs is not None:
        raise bad_request("logprobs of a prompt are not supported: leave out echo, or logprobs", "echo")
    prompt = asked.prompt
    many: list[Any] = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
    if not 1 <= len(many) <= MOST_PROMPTS:
        raise bad_request(f"prompt has {len(many)} texts; give at most {MOST_PROMPTS}", "prompt")
    special = asked.add_special_tokens is not False
    return [
        PromptAsk(text=one, add_special_tokens=special) if isinstance(one, str) else PromptAsk(ids=_ids(one))
        for one in many
    ]


def _ids(prompt: Any) -> tuple[int, ...]:
    """A prompt that is given as ids."""
    if not isinstance(prompt, list) or not all(isinstance(one, int) for one in prompt):
        raise bad_request("prompt mixes texts and ids: give a text, a list of texts, ids, or a list of ids", "prompt")
    return tuple(prompt)


def params_of(asked: CompletionRequest, defaults: SamplingParams) -> SamplingParams:
    """How tokens are chosen."""
    new = DEFAULT_NEW if asked.max_tokens is None else asked.max_tokens
    return fields.sampling(asked, defaults, new, logprobs=asked.logprobs)


class CompletionWriter:
    """Events of choices to the chunks of a stream, and to a whole answer. decode: a token's bytes. echoes: by choice
    the text of its prompt, "" where it is not wanted."""

    def __init__(self, asked: CompletionRequest, model: str, decode: Any, echoes: Sequence[str]) -> None:
        self.asked, self.model, self.decode, self.echoes = asked, model, decode, echoes
        self.id, self.created = usage.new_id("cmpl"), int(time.time())
        self.lengths: dict[int, int] = {}

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """One event of a stream, or a whole answer."""
        head = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}
        return {**head, "choices": choices, **more}

    def openings(self, count: int) -> list[dict[str, Any]]:
        """The prompts, where they are wanted."""
        return [self._piece(i, echo, []) for i, echo in enumerate(self.echoes[:count]) if echo]

    def deltas(self, index: int, events: Sequence[Event], chunks: Sequence[Chunk]) -> list[dict[str, Any]]:
        """What events and tokens add to a choice."""
        text = "".join(one.text for one in events if isinstance(one, Text))
        return [self._piece(index, text, chunks)] if text or self.asked.logprobs is not None else []

    def _piece(self, index: int, text: str, chunks: Sequence[Chunk]) -> dict[str, Any]:
        """What a choice grows by."""
        start = self.lengths.get(index, 0)
        self.lengths[index] = start + len(text)
        return self.chunk([self._choice(index, text, chunks, start, None)])

    def progressed(self, index: int, progress: dict[str, Any]) -> dict[str, Any]:
        """How far the prompt of a choice is."""
        return self.chunk([self._choice(index, "", [], 0, None)], prompt_progress=progress)

    def closing(self, index: int, generation: Generation) -> dict[str, Any]:
        """The last chunk of a choice."""
        choice = self._choice(index, "", [], 0, generation.finish_reason)
        return self.chunk([choice], **usage.extras(generation, bool(self.asked.headrace)))

    def counted(self, generations: Sequence[Generation]) -> dict[str, Any]:
        """The chunk of counts, at the end of a stream."""
        return self.chunk([], usage=usage.openai(generations, self.asked.n or 1))

    def _choice(self, index: int, text: str, chunks: Sequence[Chunk], start: int, reason: str | None) -> dict[str, Any]:
        likely = completion_logprobs(chunks, self.decode, start) if self.asked.logprobs is not None else None
        return {"index": index, "text": text, "logprobs": likely, "finish_reason": reason}

    def whole(self, generations: Sequence[Generation], gathered: Sequence[Gathered]) -> dict[str, Any]:
        """The answer of a request that streams nothing."""
        choices = [
            self._choice(i, echo + one.text, one.chunks, len(echo), generation.finish_reason)
            for i, (generation, one, echo) in enumerate(zip(generations, gathered, self.echoes, strict=True))
        ]
        extras = usage.extras(generations[0], bool(self.asked.headrace))
        return self.chunk(choices, usage=usage.openai(generations, self.asked.n or 1), **extras)
