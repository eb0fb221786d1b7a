"""Answers of the Responses API: whole, and as a stream of numbered events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from ....loaders.tokens.dialects.events import Event
from ...generation.blocks import CALL, TEXT, THINKING, Block, Blocks, Change
from .. import sse
from ..generation import Generation
from . import usage
from .responses import ResponsesRequest


class ResponsesWriter:
    """Events of one answer to what a client reads."""

    def __init__(self, asked: ResponsesRequest, model: str, generation: Generation) -> None:
        self.asked, self.model, self.generation = asked, model, generation
        self.id, self.created = usage.new_id("resp"), int(time.time())
        self.blocks = Blocks()
        self.number = 0

    def opening(self) -> Iterator[bytes]:
        """The first events."""
        yield self._event("response.created", response=self._response("in_progress", []))
        yield self._event("response.in_progress", response=self._response("in_progress", []))

    def pieces(self, events: list[Event]) -> Iterator[bytes]:
        """What events add."""
        for change in self.blocks.add(events):
            yield from self._changed(change)

    def closing(self) -> Iterator[bytes]:
        """The last events."""
        for change in self.blocks.close():
            yield from self._changed(change)
        done = self.finished()
        yield self._event(f"response.{done['status']}", response=done)

    def failed(self, message: str) -> bytes:
        """The last event of an answer that failed."""
        response = self._response("failed", []) | {"error": {"code": "server_error", "message": message}}
        return self._event("response.failed", response=response)

    def whole(self, blocks: Blocks) -> dict[str, Any]:
        """The answer of a request that streams nothing."""
        self.blocks = blocks
        return self.finished()

    def finished(self) -> dict[str, Any]:
        """The response at its end."""
        is_cut = self.generation.request.sequence.finish_reason == "length"
        found = self._response("incomplete" if is_cut else "completed", [self._item(one) for one in self.blocks.all])
        if is_cut:
            found["incomplete_details"] = {"reason": "max_output_tokens"}
        counts = usage.openai([self.generation])
        found["usage"] = {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": counts["prompt_tokens_details"],
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": counts["completion_tokens_details"],
            "total_tokens": counts["total_tokens"],
        }
        return found | usage.extras(self.generation, bool(self.asked.headrace))

    def _response(self, status: str, output: list[Any]) -> dict[str, Any]:
        asked, params = self.asked, self.generation.request.sequence.params
        return {
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "model": self.model,
            "output": output, "error": None, "incomplete_details": None, "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens, "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None, "store": False, "temperature": params.temperature, "top_p": params.top_p,
            "tools": asked.tools or [], "tool_choice": asked.tool_choice or "auto",
            "text": {"format": (asked.text and asked.text.format) or {"type": "text"}}, "truncation": "disabled",
            "reasoning": {"effort": asked.reasoning and asked.reasoning.effort, "summary": None},
            "metadata": asked.metadata or {}, "usage": None,
        }  # fmt: skip

    def _event(self, kind: str, **more: Any) -> bytes:
        self.number += 1
        return sse.event({"type": kind, "sequence_number": self.number - 1, **more}, kind)

    def _changed(self, change: Change) -> Iterator[bytes]:
        block = change.block
        if change.begins:
            yield from self._begun(block)
        elif change.piece is None:
            yield from self._ended(block)
        else:
            yield self._event(f"{_kind(block)}.delta", **self._place(block), delta=change.piece)

    def _begun(self, block: Block) -> Iterator[bytes]:
        yield self._event("response.output_item.added", output_index=block.index, item=self._item(block, False))
        if block.kind == TEXT:
            part = {"type": "output_text", "text": "", "annotations": []}
            yield self._event("response.content_part.added", **self._place(block), part=part)

    def _ended(self, block: Block) -> Iterator[bytes]:
        content = "arguments" if block.kind == CALL else "text"
        named = {"name": block.name} if block.kind == CALL else {}
        yield self._event(f"{_kind(block)}.done", **self._place(block), **{content: block.content}, **named)
        if block.kind == TEXT:
            part = {"type": "output_text", "text": block.content, "annotations": []}
            yield self._event("response.content_part.done", **self._place(block), part=part)
        yield self._event("response.output_item.done", output_index=block.index, item=self._item(block))

    def _item_id(self, block: Block) -> str:
        return f"{self.id}-{block.index}"

    def _place(self, block: Block) -> dict[str, Any]:
        place = {"item_id": self._item_id(block), "output_index": block.index}
        return place if block.kind == CALL else {**place, "content_index": 0}

    def _item(self, block: Block, is_done: bool = True) -> dict[str, Any]:
        """A block as an item of the output."""
        head = {"id": self._item_id(block), "status": "completed" if is_done else "in_progress"}
        content = block.content if is_done else ""
        if block.kind == CALL:
            return {**head, "type": "function_call", "call_id": block.id, "name": block.name, "arguments": content}
        if block.kind == THINKING:
            parts = [{"type": "reasoning_text", "text": content}] if is_done else []
            return {**head, "type": "reasoning", "summary": [], "content": parts}
        said = [{"type": "output_text", "text": content, "annotations": []}] if is_done else []
        return {**head, "type": "message", "role": "assistant", "content": said}


def _kind(block: Block) -> str:
    """The name of the events that a block grows by."""
    kinds = {CALL: "function_call_arguments", THINKING: "reasoning_text", TEXT: "output_text"}
    return f"response.{kinds[block.kind]}"
