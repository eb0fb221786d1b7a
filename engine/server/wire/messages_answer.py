"""Answers of Anthropic's API: whole, and as a stream of events whose order its clients rely on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ....loaders.tokens.dialects.events import Event
from ...generation.blocks import CALL, TEXT, THINKING, Block, Blocks, Change
from .. import sse
from ..generation import Generation
from . import usage

SIGNATURE = "headrace"  # clients send thinking back only with one


class MessagesWriter:
    """Events of one answer to what a client reads."""

    def __init__(self, model: str, generation: Generation) -> None:
        self.model, self.generation = model, generation
        self.id = usage.new_id("msg")
        self.blocks = Blocks()

    def opening(self) -> bytes:
        """The first event. What was cached is not known yet."""
        counts = {"input_tokens": self.generation.prompt_tokens, "output_tokens": 0}
        message = self._message([], None, {**counts, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0})
        return _event("message_start", message=message)

    def pieces(self, events: list[Event]) -> Iterator[bytes]:
        """What events add."""
        for change in self.blocks.add(events):
            yield from _changed(change)

    def closing(self) -> Iterator[bytes]:
        """The last events."""
        for change in self.blocks.close():
            yield from _changed(change)
        delta = {"stop_reason": self.stop_reason, "stop_sequence": self.generation.text.said.hit}
        yield _event("message_delta", delta=delta, usage=self._usage(), **self._extras())
        yield _event("message_stop")

    def whole(self, blocks: Blocks) -> dict[str, Any]:
        """The answer of a request that streams nothing."""
        content = [_whole(one) for one in blocks.all]
        return {**self._message(content, self.stop_reason, self._usage()), **self._extras()}

    def _message(self, content: list[Any], reason: str | None, counts: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content,
            "stop_reason": reason, "stop_sequence": self.generation.text.said.hit, "usage": counts,
        }  # fmt: skip

    def _extras(self) -> dict[str, Any]:
        return usage.extras(self.generation, False)

    def _usage(self) -> dict[str, Any]:
        generation = self.generation
        return {
            "input_tokens": generation.prompt_tokens - generation.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": generation.cached_tokens,
            "output_tokens": generation.tokens,
        }

    @property
    def stop_reason(self) -> str:
        """Why it ended, in this API's words."""
        if self.generation.text.said.hit is not None:
            return "stop_sequence"
        return {"tool_calls": "tool_use", "length": "max_tokens"}.get(self.generation.finish_reason, "end_turn")


def ping() -> bytes:
    """Shows that a silent stream lives."""
    return _event("ping")


def _event(kind: str, **more: Any) -> bytes:
    return sse.event({"type": kind, **more}, kind)


def _changed(change: Change) -> Iterator[bytes]:
    block, index = change.block, change.block.index
    if change.begins:
        yield _event("content_block_start", index=index, content_block=_empty(block))
    elif change.piece is None:
        if block.kind == THINKING:
            yield _event("content_block_delta", index=index, delta={"type": "signature_delta", "signature": SIGNATURE})
        yield _event("content_block_stop", index=index)
    else:
        yield _event("content_block_delta", index=index, delta=_delta(block, change.piece))


def _empty(block: Block) -> dict[str, Any]:
    if block.kind == CALL:
        return {"type": "tool_use", "id": block.id, "name": block.name, "input": {}}
    return (
        {"type": "thinking", "thinking": "", "signature": ""}
        if block.kind == THINKING
        else {"type": "text", "text": ""}
    )


def _delta(block: Block, piece: str) -> dict[str, Any]:
    if block.kind == CALL:
        return {"type": "input_json_delta", "partial_json": piece}
    return (
        {"type": "thinking_delta", "thinking": piece}
        if block.kind == THINKING
        else {"type": "text_delta", "text": piece}
    )


def _whole(block: Block) -> dict[str, Any]:
    if block.kind == TEXT:
        return {"type": "text", "text": block.content}
    if block.kind == THINKING:
        return {"type": "thinking", "thinking": block.content, "signature": SIGNATURE}
    return {"type": "tool_use", "id": block.id, "name": block.name, "input": _object(block.content)}


def _object(text: str) -> dict[str, Any]:
    """Arguments as the object that this API wants; what is no object (a cut one) is kept as text."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"arguments": text}
