"""The model as handlers use it: prompts made and checked beside the engine, answers started, counted and ended.

Everything here runs in the thread of the event loop, but for what says otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import OptionError
from ...loaders.tokens.dialects.choose import Choice, choose
from ...loaders.tokens.template_files import named_or_in_file
from ...loaders.tokens.tokenizer import Tokenizer
from ..config import TO_THE_END, SamplingParams
from ..generation.grammars.grammar import Grammar
from ..generation.own_answers import PromptIds
from ..llm import LLM
from ..model.kv_cache import salted
from .engine_thread import EngineThread
from .generation import Generation
from .settings import ServerSettings
from .timed.workers import Doing, in_time
from .wire.errors import ApiError, PromptTooLong

PREPARE_S = 60.0  # for a template and its tokens; a template is a stranger's code, and may not end


@dataclass(frozen=True, kw_only=True)
class PromptAsk:
    """What a prompt is made of: a conversation with tools, or text, or ids."""

    messages: Sequence[Mapping[str, Any]] | None = None
    tools: Any = None
    arguments: Mapping[str, Any] | None = None
    add_generation_prompt: bool = True
    continues: bool = False  # the last message is gone on with
    text: str | None = None
    ids: tuple[int, ...] | None = None
    add_special_tokens: bool = True


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt as ids; text: of a conversation's prompt."""

    made: PromptIds
    text: str = ""

    @property
    def ids(self) -> list[int]:
        return self.made.ids


class Service:
    """One model that is served. name: in answers."""

    def __init__(
        self, llm: LLM, settings: ServerSettings, name: str, defaults: Mapping[str, Any] | None = None
    ) -> None:
        self.llm, self.settings, self.name = llm, settings, name
        self.defaults = SamplingParams(**{"max_new_tokens": llm.admission.limit, **(defaults or {})})
        self.template = named_or_in_file(settings.chat_template)
        if self.template is not None and llm.tokenizer is not None:
            llm.tokenizer.template(self.template)  # one that the model has not is refused now, not in every answer
        self.choice: Choice = choose(
            llm.tokenizer, template=self._template_text(), family=llm.parts.checkpoint.family.model_type,
            wanted=settings.dialect,
        )  # fmt: skip
        self.started = time.time()
        self.open: dict[int, Generation] = {}
        self.ended: list[Callable[[Generation], None]] = []  # told of every answer that ended
        self.is_closing = False
        self.engine = EngineThread(llm.loop, self._passed)
        self._loop: asyncio.AbstractEventLoop | None = None

    # ---- life

    def start(self) -> None:
        """Begins to serve, in the event loop that runs now."""
        self._loop = asyncio.get_running_loop()
        self.engine.start()
        if (
            self.choice.dialect.forms and self.llm.vocabulary is not None
        ):  # before the first request with tools needs it
            threading.Thread(target=self._prepare_grammars, name="headrace-vocabulary", daemon=True).start()

    def _prepare_grammars(self) -> None:
        with contextlib.suppress(OptionError):  # said where a grammar is asked for
            if self.llm.vocabulary is not None:
                self.llm.vocabulary.made()

    async def stop(self, grace_s: float = 10.0) -> None:
        """Takes nothing more, lets answers end for a while, then ends them."""
        self.is_closing = True
        end = time.monotonic() + grace_s
        while self.open and time.monotonic() < end:
            await asyncio.sleep(0.05)
        for generation in list(self.open.values()):
            generation.request.error = ApiError(503, "the server is stopping; ask again in a while")
            generation.cancel()
        await asyncio.to_thread(self.engine.stop)

    def _passed(self) -> None:
        """A pass is over; in the thread of the engine."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for generation in list(self.open.values()):
            generation.wake()

    # ---- prompts

    @property
    def limit(self) -> int:
        """Tokens that the context holds."""
        return self.llm.admission.limit

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises TokenizerError where the model has none."""
        return self.llm.admission.need_tokenizer("text prompts")

    async def prompt(self, ask: PromptAsk, check: bool = True) -> Prompt:
        """The ids of a prompt, made in another thread; raises ApiError or a HeadraceError. check: whether it fits."""
        doing = Doing()
        made = await in_time(lambda: self._make_prompt(ask, doing), PREPARE_S, doing)
        if check and len(made.ids) > self.limit:
            raise PromptTooLong(
                len(made.ids), self.limit, "Shorten it, or start the server with a larger --max-context."
            )
        return made

    def _make_prompt(self, ask: PromptAsk, doing: Doing) -> Prompt:
        if ask.ids is not None:
            return Prompt(made=PromptIds(ids=list(ask.ids)))
        text = self.render(ask) if ask.text is None else ""
        doing.what, doing.remedy = "the tokenizer", "give a shorter prompt"
        if ask.text is not None:
            encode = self.llm.admission.encode if ask.add_special_tokens else self._encode_plain
            return Prompt(made=PromptIds(ids=encode(ask.text)))
        return Prompt(made=self.llm.admission.chat_ids(text), text=text)

    def _encode_plain(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def render(self, ask: PromptAsk) -> str:
        """The text of a conversation's prompt; runs a stranger's code."""
        return self.tokenizer.render_chat(
            list(ask.messages or ()), ask.add_generation_prompt, tools=ask.tools, template=self.template,
            arguments=ask.arguments, continues=ask.continues,
        )  # fmt: skip

    async def rendered(self, ask: PromptAsk) -> str:
        """The same in another thread."""
        return await in_time(lambda: self.render(ask), PREPARE_S)

    def text_of(self, ids: Sequence[int]) -> str:
        """Text of tokens, without special ones; "" where the model has no tokenizer."""
        tokenizer = self.llm.tokenizer
        return "" if tokenizer is None else tokenizer.decode(list(ids))

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token."""
        tokenizer = self.llm.tokenizer
        return b"" if tokenizer is None else tokenizer.bytes_of(token)

    def _template_text(self) -> str | None:
        """The template that was asked for, as text."""
        if self.template is None or "{" in self.template or self.llm.tokenizer is None:
            return self.template
        named = self.llm.tokenizer.templates.get(self.template)
        return None if named is None else named.text

    # ---- answers

    def check_queue(self) -> None:
        """Raises ApiError where no more requests are taken."""
        if self.is_closing:
            raise ApiError(503, "the server is stopping; ask again in a while", headers={"retry-after": "5"})
        if not self.engine.is_running:
            raise ApiError(500, "the engine has stopped; restart the server, and report what its log says")
        if len(self.open) >= self.settings.parallel + self.settings.max_queue:
            raise ApiError(
                429, f"{len(self.open)} requests run or wait, and no more are taken (--max-queue); ask again later",
                code="queue_full", headers={"retry-after": "5"},
            )  # fmt: skip

    def clamp(self, params: SamplingParams, prompt_tokens: int) -> SamplingParams:
        """No more new tokens than the context leaves."""
        left = self.llm.admission.room_behind(prompt_tokens)
        return replace(
            params, max_new_tokens=left if params.max_new_tokens == TO_THE_END else min(params.max_new_tokens, left)
        )

    async def form(self, wish: Callable[[], Grammar | None]) -> Grammar | None:
        """The grammar that answers are to follow, made in another thread with what it needs; raises ApiError."""

        def make() -> Grammar | None:
            found = wish()
            if self.llm.vocabulary is not None and found is not None:
                self.llm.vocabulary.matcher(found)
            return found

        return await in_time(make, PREPARE_S, Doing("the grammar", "give a smaller schema, or fewer tools"))

    def answer(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        tools: Any = None,
        parse: bool = False,
        priority: int = 0,
        salt: str | None = None,
        grammar: Grammar | None = None,
        shows_progress: bool = False,
    ) -> Generation:
        """Starts an answer. parse: reasoning and calls are told apart from text. salt: it shares no cached prefix with
        answers of another one. grammar: what it follows, behind its reasoning. shows_progress: news tell how far the
        prompt is. Raises ApiError or a HeadraceError."""
        self.check_queue()
        params, dialect = self.clamp(params, len(prompt.ids)), self.choice.dialect if parse else None
        request, text = self.llm.admission.told_apart(prompt.made, params, dialect, tools, prompt.text, grammar)
        request.sequence.priority, request.sequence.salt = priority, salted(salt) if salt else b""
        generation = Generation(request, text, self._end, shows_progress)
        self.open[request.sequence.id] = generation
        self.engine.submit(request)
        return generation

    def _end(self, generation: Generation) -> None:
        """Ends an answer, whoever wants it; told once."""
        request = generation.request
        if request.is_open:
            self.engine.cancel(request)
        if self.open.pop(request.sequence.id, None) is not None:
            for told in self.ended:
                told(generation)
