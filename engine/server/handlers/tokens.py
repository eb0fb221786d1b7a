"""Tokens without answers: what a prompt is made of, and how many tokens it has."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..service import PromptAsk, Service
from ..wire import chat as chat_wire
from ..wire import fields
from ..wire.chat import ChatRequest
from ..wire.errors import bad_request
from .common import Json, service_of


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """By llama.cpp's names (content) and vLLM's (prompt, or messages)."""

    content: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    with_pieces: bool | None = None
    return_token_strs: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """Token ids."""

    tokens: list[int]


async def tokenize(request: Request) -> Response:
    """POST /tokenize"""
    service, asked = service_of(request), fields.read(await request.body(), TokenizeRequest)
    text = fields.first(asked.content, asked.prompt)
    if (text is None) == (asked.messages is None):
        raise bad_request("give content (or prompt), or messages")
    # llama.cpp adds no special tokens unless asked, vLLM does.
    special = fields.first(asked.add_special, asked.add_special_tokens, asked.content is None)
    ask = PromptAsk(text=text, add_special_tokens=bool(special)) if text is not None else _chat(asked)
    ids = await _ids(service, ask)
    found: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": service.limit}
    if asked.with_pieces:
        found["tokens"] = [{"id": one, "piece": _piece(service.token_bytes(one))} for one in ids]
    if asked.return_token_strs:
        found["token_strs"] = [service.token_bytes(one).decode("utf-8", "replace") for one in ids]
    return Json(found)


def _chat(asked: TokenizeRequest) -> PromptAsk:
    return PromptAsk(
        messages=asked.messages, tools=asked.tools or None, arguments=asked.chat_template_kwargs,
        **fields.prompt_end(asked.add_generation_prompt, asked.continue_final_message),
    )  # fmt: skip


def _piece(data: bytes) -> str | list[int]:
    """Text, or the bytes of a part of a character, as llama.cpp gives it."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


async def _ids(service: Service, ask: PromptAsk) -> list[int]:
    """Also of prompts that are too long."""
    return (await service.prompt(ask, check=False)).ids


async def detokenize(request: Request) -> Response:
    """POST /detokenize"""
    service, asked = service_of(request), fields.read(await request.body(), DetokenizeRequest)
    size = service.llm.spec.vocab
    if (bad := next((one for one in asked.tokens if not 0 <= one < size), None)) is not None:
        raise bad_request(f"token id {bad} is outside the vocabulary of {size} tokens", "tokens")
    text = service.text_of(asked.tokens)
    return Json({"content": text, "prompt": text})


async def apply_template(request: Request) -> Response:
    """POST /apply-template: the text of a conversation's prompt."""
    service, asked = service_of(request), fields.read(await request.body(), ChatRequest)
    return Json({"prompt": await service.rendered(chat_wire.prompt_of(asked))})


async def count_chat(request: Request) -> Response:
    """POST /v1/chat/completions/input_tokens: how many tokens a chat's prompt has, tools and template included."""
    service, asked = service_of(request), fields.read(await request.body(), ChatRequest)
    ids = await _ids(service, chat_wire.prompt_of(asked))
    return Json({"object": "chat.completion.input_tokens", "input_tokens": len(ids)})


POSTS = {"/tokenize": tokenize, "/detokenize": detokenize, "/apply-template": apply_template}
