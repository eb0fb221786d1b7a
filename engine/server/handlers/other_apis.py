"""Anthropic's messages and OpenAI's responses: the same answers in other words."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ....loaders.tokens.dialects.events import Event
from .. import sse
from ..generation import Generation
from ..service import Service
from ..wire import fields
from ..wire import messages as messages_wire
from ..wire import responses as responses_wire
from ..wire.errors import ApiError, of_exception
from ..wire.messages import MessagesRequest
from ..wire.messages_answer import MessagesWriter, ping
from ..wire.responses import ResponsesRequest
from ..wire.responses_answer import ResponsesWriter
from ..wire.usage import new_id
from .answers import Answer, with_tools
from .common import Json, model_name, service_of


async def messages(request: Request) -> Any:
    """POST /v1/messages"""
    service, asked = service_of(request), fields.read(await request.body(), MessagesRequest)
    name = model_name(service, asked.model)
    ask, params = messages_wire.prompt_of(asked), messages_wire.params_of(asked, service.defaults)
    prompt = await service.prompt(ask)
    format = (asked.output_config and asked.output_config.format) or asked.output_format
    params, more = await with_tools(service, asked, ask.tools, params, format)
    generation = service.answer(prompt, params, **more, **fields.running(asked))
    writer = MessagesWriter(name, generation)
    if asked.stream:
        return sse.EventStream(message_events(writer, service), generation.cancel, {"request-id": new_id("req")})
    return Answer([generation], lambda _, gathered: writer.whole(gathered[0].blocks), _anthropic_error)


def _anthropic_error(error: ApiError) -> dict[str, Any]:
    return error.anthropic(new_id("req"))


async def message_events(writer: MessagesWriter, service: Service) -> AsyncGenerator[bytes, None]:
    """The events of a streamed message."""
    yield writer.opening()
    try:
        async for piece in _pieces(
            writer.generation, writer.pieces, ping() if not service.settings.no_keep_alive else b""
        ):
            yield piece
        for piece in writer.closing():
            yield piece
    except Exception as error:  # the headers are out: the stream says it
        yield sse.event(_anthropic_error(of_exception(error)), "error")


async def _pieces(
    generation: Generation, write: Callable[[list[Event]], Any], silent: bytes
) -> AsyncGenerator[bytes, None]:
    """What an answer adds, as it comes; `silent` where nothing does."""
    news = generation.news()
    try:
        async for found in news:
            if found.events:
                for piece in write(found.events):
                    yield piece
            elif not found.chunks and silent:
                yield silent
    finally:
        await news.aclose()


async def count_tokens(request: Request) -> Response:
    """POST /v1/messages/count_tokens: of the prompt as it would be made, tools included."""
    service, asked = service_of(request), fields.read(await request.body(), MessagesRequest)
    prompt = await service.prompt(messages_wire.prompt_of(asked), check=False)
    return Json({"input_tokens": len(prompt.ids)})


async def responses(request: Request) -> Any:
    """POST /v1/responses"""
    service, asked = service_of(request), fields.read(await request.body(), ResponsesRequest)
    name = model_name(service, asked.model)
    ask, params = responses_wire.prompt_of(asked), responses_wire.params_of(asked, service.defaults)
    prompt = await service.prompt(ask)
    format = None if asked.text is None else asked.text.format
    params, more = await with_tools(service, asked, ask.tools, params, format, asked.parallel_tool_calls)
    generation = service.answer(prompt, params, **more, **fields.running(asked))
    writer = ResponsesWriter(asked, name, generation)
    if asked.stream:
        return sse.EventStream(response_events(writer, service), generation.cancel)
    return Answer([generation], lambda _, gathered: writer.whole(gathered[0].blocks))


async def response_events(writer: ResponsesWriter, service: Service) -> AsyncGenerator[bytes, None]:
    """The events of a streamed response."""
    for piece in writer.opening():
        yield piece
    try:
        silent = b"" if service.settings.no_keep_alive else sse.ALIVE
        async for piece in _pieces(writer.generation, writer.pieces, silent):
            yield piece
        for piece in writer.closing():
            yield piece
    except Exception as error:  # the headers are out: the stream says it
        yield writer.failed(of_exception(error).message)


async def count_response(request: Request) -> Response:
    """POST /v1/responses/input_tokens"""
    service, asked = service_of(request), fields.read(await request.body(), ResponsesRequest)
    prompt = await service.prompt(responses_wire.prompt_of(asked), check=False)
    return Json({"object": "response.input_tokens", "input_tokens": len(prompt.ids)})
