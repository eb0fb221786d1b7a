"""POST /v1/chat/completions: OpenAI's chat API, with the fields that vLLM and llama.cpp add."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ....loaders.tokens.dialects.events import CallArguments, CallStart, Event, Reasoning, Text
from ...config import SamplingParams
from ...generation.blocks import TEXT, THINKING, Blocks
from ...generation.outputs import Chunk
from ..generation import Generation
from ..service import PromptAsk
from . import fields, usage
from .logprobs import chat_logprobs


class ChatRequest(fields.Streamed, kw_only=True):
    """The body of a request."""

    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


def prompt_of(asked: ChatRequest) -> PromptAsk:
    """What the prompt is made of; raises ApiError for what cannot be done."""
    fields.check_sizes(asked.messages, asked.tools)
    return PromptAsk(
        messages=asked.messages,
        tools=asked.tools or None,
        arguments=fields.template_arguments(asked.reasoning_effort, asked.chat_template_kwargs, asked.enable_thinking),
        **fields.prompt_end(asked.add_generation_prompt, asked.continue_final_message),
    )


def params_of(asked: ChatRequest, defaults: SamplingParams) -> SamplingParams:
    """How tokens are chosen."""
    new = fields.first(asked.max_completion_tokens, asked.max_tokens)
    likely = (asked.top_logprobs or 0) if asked.logprobs else None
    return fields.sampling(asked, defaults, new, logprobs=likely)


class ChatWriter:
    """Events of one choice to the deltas of a stream, and to a whole message. decode: ids to text."""

    def __init__(self, asked: ChatRequest, model: str, decode: Any) -> None:
        self.asked, self.model, self.decode = asked, model, decode
        self.id, self.created = usage.new_id("chatcmpl"), int(time.time())

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """One event of a stream."""
        head = {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model}
        return {**head, "choices": choices, **more}

    def openings(self, count: int) -> list[dict[str, Any]]:
        """The first chunk of each choice."""
        return [self.chunk([self._choice(i, {"role": "assistant", "content": ""})]) for i in range(count)]

    def deltas(self, index: int, events: Sequence[Event], chunks: Sequence[Chunk]) -> list[dict[str, Any]]:
        """What events and tokens add to a choice."""
        found = [self._choice(index, delta) for event in events if (delta := delta_of(event))]
        if self.asked.logprobs and chunks:
            found = found or [self._choice(index, {})]
            found[0]["logprobs"] = chat_logprobs(chunks, self.decode)
        return [self.chunk([one]) for one in found]

    def progressed(self, index: int, progress: dict[str, Any]) -> dict[str, Any]:
        """How far the prompt of a choice is."""
        return self.chunk([self._choice(index, {})], prompt_progress=progress)

    def closing(self, index: int, generation: Generation) -> dict[str, Any]:
        """The last chunk of a choice."""
        choice = self._choice(index, {}) | {"finish_reason": generation.finish_reason}
        return self.chunk([choice], **usage.extras(generation, bool(self.asked.headrace)))

    def counted(self, generations: Sequence[Generation]) -> dict[str, Any]:
        """The chunk of counts, at the end of a stream."""
        return self.chunk([], usage=usage.openai(generations))

    def _choice(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def whole(self, generations: Sequence[Generation], gathered: Sequence[Gathered]) -> dict[str, Any]:
        """The answer of a request that streams nothing."""
        choices = []
        for i, (generation, one) in enumerate(zip(generations, gathered, strict=True)):
            likely = chat_logprobs(one.chunks, self.decode) if self.asked.logprobs else None
            choices.append(
                {"index": i, "message": one.message(), "logprobs": likely, "finish_reason": generation.finish_reason}
            )
        head = {"id": self.id, "object": "chat.completion", "created": self.created, "model": self.model}
        extras = usage.extras(generations[0], bool(self.asked.headrace))
        return {**head, "choices": choices, "usage": usage.openai(generations), **extras}


def delta_of(event: Event) -> dict[str, Any] | None:
    """What an event is in a stream. Clients differ in the name of reasoning, so it has both."""
    if isinstance(event, Text):
        return {"content": event.text}
    if isinstance(event, Reasoning):
        return {"reasoning_content": event.text, "reasoning": event.text}
    if isinstance(event, CallStart):
        function = {"name": event.name, "arguments": ""}
        return {"tool_calls": [{"index": event.index, "id": event.id, "type": "function", "function": function}]}
    if isinstance(event, CallArguments):
        return {"tool_calls": [{"index": event.index, "function": {"arguments": event.piece}}]}
    return None


class Gathered:
    """A whole answer, from its news."""

    def __init__(self) -> None:
        self.blocks = Blocks()
        self.chunks: list[Chunk] = []

    def add(self, events: Sequence[Event], chunks: Sequence[Chunk]) -> None:
        """Takes in what came."""
        self.blocks.gather(events)
        self.chunks += chunks

    @property
    def text(self) -> str:
        """What is said."""
        return self.blocks.text_of(TEXT)

    def message(self) -> dict[str, Any]:
        """As the chat API has it."""
        thought, calls = self.blocks.text_of(THINKING), self.blocks.calls
        found: dict[str, Any] = {"role": "assistant", "content": self.text or (None if calls else "")}
        if thought:
            found |= {"reasoning_content": thought, "reasoning": thought}
        return found | ({"tool_calls": calls} if calls else {})
