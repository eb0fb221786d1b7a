"""Chat and text completions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...config import SamplingParams
from ...generation.grammars import tool_calls
from ...generation.grammars.grammar import Grammar
from .. import sse
from ..generation import Generation
from ..merge import merged
from ..service import Service
from ..structured import formats
from ..wire import chat as chat_wire
from ..wire import completions as completion_wire
from ..wire import fields, usage
from ..wire.chat import ChatRequest, ChatWriter, Gathered
from ..wire.completions import CompletionRequest, CompletionWriter
from ..wire.errors import ApiError, of_exception
from .common import Json, model_name, service_of


async def chat(request: Request) -> Any:
    """POST /v1/chat/completions"""
    service, asked = service_of(request), fields.read(await request.body(), ChatRequest)
    name, count = model_name(service, asked.model), fields.choices(asked)
    ask, params = chat_wire.prompt_of(asked), chat_wire.params_of(asked, service.defaults)
    prompt = await service.prompt(ask)
    params, more = await with_tools(service, asked, ask.tools, params, asked.response_format, asked.parallel_tool_calls)
    more |= streaming(asked)
    starts = [partial(service.answer, prompt, nth(params, i), **more) for i in range(count)]
    generations, writer = started(starts), ChatWriter(asked, name, service.token_bytes)
    if asked.stream:
        return sse.EventStream(events(writer, generations, service), partial(end, generations))
    return Answer(generations, writer.whole)


def streaming(asked: fields.Streamed) -> dict[str, Any]:
    """What an answer is started with that may be streamed."""
    return {**fields.running(asked), "shows_progress": bool(asked.stream and asked.return_progress)}


async def with_tools(
    service: Service,
    asked: Any,
    tools: Any,
    params: SamplingParams,
    format: Mapping[str, Any] | None,
    parallel: bool | None = None,
) -> tuple[SamplingParams, dict[str, Any]]:
    """How tokens of an answer are chosen that may call tools, or has a form, and what it is started with besides."""
    if tools and tool_calls.leaves_out(asked.tool_choice):
        tools, params = None, tool_calls.barred(params, service.choice.dialect, service.tokenizer)
    grammar = await form_of(service, asked, format, tools, asked.tool_choice, parallel)
    return params, {"tools": tools, "parse": True, "grammar": grammar}


async def form_of(
    service: Service,
    asked: fields.Sampled,
    format: Mapping[str, Any] | None,
    tools: Any = None,
    choice: Any = None,
    parallel: bool | None = None,
) -> Grammar | None:
    """The grammar of an answer: of the form that is asked for, or of a call that must come, or either of both."""
    formats.about("tool_choice", partial(tool_calls.forced_names, choice))
    form, schema = formats.wish_of(asked, format), formats.schema_of(format)
    if form is None and choice is None and not tools:
        return None
    vocabulary = service.llm.vocabulary
    assert vocabulary is not None, "a form or tools without a tokenizer"
    make = partial(
        tool_calls.of_chat, service.choice.dialect, vocabulary, tools=tools, choice=choice,
        several=not tool_calls.single(parallel, choice), schema=schema if isinstance(schema, Mapping) else None,
        form=form,
    )  # fmt: skip
    return await service.form(partial(formats.about, "tool_choice", make) if tools or choice else make)


def started(starts: Iterable[Callable[[], Generation]]) -> list[Generation]:
    """All of several answers, or none of them."""
    found: list[Generation] = []
    try:
        for start in starts:
            found.append(start())
    except BaseException:
        end(found)
        raise
    return found


def end(generations: Iterable[Generation]) -> None:
    """Ends those that have not ended."""
    for generation in generations:
        generation.cancel()


def nth(params: SamplingParams, number: int) -> SamplingParams:
    """Parameters of one of several answers: a seed gives each its own draws, the same every time."""
    return params if params.seed is None or not number else replace(params, seed=(params.seed + number) % 2**63)


async def events(
    writer: ChatWriter | CompletionWriter, generations: Sequence[Generation], service: Service
) -> AsyncGenerator[bytes, None]:
    """The events of a stream of several answers."""
    for opening in writer.openings(len(generations)):
        yield sse.event(opening)
    stream = merged(generations)
    try:
        async for i, news in stream:
            if news is None:
                yield sse.event(writer.closing(i, generations[i]))
                continue
            if news.progress:
                yield sse.event(writer.progressed(i, news.progress))
            if news.events or news.chunks:
                times = {"timings": usage.timings(generations[i])} if writer.asked.timings_per_token else {}
                for delta in writer.deltas(i, news.events, news.chunks):
                    yield sse.event(delta | times)
            elif not news.progress and not service.settings.no_keep_alive:
                yield sse.ALIVE
        if writer.asked.wants_usage:
            yield sse.event(writer.counted(generations))
        yield sse.DONE
    except Exception as error:  # the headers are out: the stream says it
        yield sse.event(of_exception(error).openai())
    finally:
        await stream.aclose()


async def completions(request: Request) -> Any:
    """POST /v1/completions"""
    service, asked = service_of(request), fields.read(await request.body(), CompletionRequest)
    name, count = model_name(service, asked.model), fields.choices(asked)
    asks, params = completion_wire.prompts_of(asked), completion_wire.params_of(asked, service.defaults)
    prompts = [await service.prompt(ask) for ask in asks]
    grammar = await form_of(service, asked, asked.response_format)
    starts = [
        partial(service.answer, prompt, nth(params, i), grammar=grammar, **streaming(asked))
        for prompt in prompts
        for i in range(count)
    ]
    generations = started(starts)
    # Behind the check of ids that came as such.
    echoes = [service.text_of(one.ids) if asked.echo else "" for one in prompts for _ in range(count)]
    writer = CompletionWriter(asked, name, service.token_bytes, echoes)
    if asked.stream:
        return sse.EventStream(events(writer, generations, service), partial(end, generations))
    return Answer(generations, writer.whole)


Whole = Callable[[Sequence[Generation], Sequence[Gathered]], dict[str, Any]]


class Answer:
    """A response that is made before it is sent, unless the client leaves first: then the work ends at once."""

    def __init__(
        self,
        generations: list[Generation],
        whole: Whole,
        problem: Callable[[ApiError], dict[str, Any]] = ApiError.openai,
    ) -> None:
        self.generations, self.whole, self.problem = generations, whole, problem

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.ensure_future(self._gather())
        watcher = asyncio.ensure_future(sse.left(receive))
        try:
            await asyncio.wait({work, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return
            response: Response = work.result()
        finally:
            for task in (work, watcher):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await work
            end(self.generations)
        await response(scope, receive, send)

    async def _gather(self) -> Response:
        gathered = [Gathered() for _ in self.generations]
        try:
            async for i, news in merged(self.generations):
                if news is not None:
                    gathered[i].add(news.events, news.chunks)
        except Exception as error:
            told = of_exception(error)
            return Json(self.problem(told), told.status, told.headers)
        return Json(self.whole(self.generations, gathered))
