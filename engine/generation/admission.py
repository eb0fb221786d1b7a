"""Which prompts may run: text to tokens, checked against vocabulary and context before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from ...errors import ContextOverflow, OptionError, TokenizerError, brief
from ...loaders.tokens.conversation import Message
from ...loaders.tokens.dialects.choose import choose
from ...loaders.tokens.dialects.dialect import Dialect
from ...loaders.tokens.dialects.machine import start
from ...loaders.tokens.tokenizer import Tokenizer
from ..coerce import items, whole
from ..config import TO_THE_END, SamplingParams
from .answer_text import AnswerText
from .grammars.grammar import Constraint, Grammar, Vocabulary
from .grammars.held_calls import HeldCalls
from .grammars.tool_calls import barred, leaves_out, of_chat, schema_of
from .own_answers import OwnAnswers, PromptIds
from .request import Request
from .sequence import Sequence, make_sequence
from .stop_strings import TextBuilder

Prompt = str | Iterable[int]  # of numpy and torch, too
Prompts = Prompt | Iterable[Prompt]
OneOfParams = SamplingParams | Mapping[str, Any]
Params = OneOfParams | Iterable[OneOfParams] | None
TAIL = 2000  # characters of a prompt's end that say whether reasoning is open already
STARTS = 100  # characters that hold any start token


class Admission:
    """Makes requests for one model. directory: of its files, for messages. vocab: tokens that it knows. limit: tokens
    of the longest sequence; trained: what the model allows. ends: tokens that end an answer."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        directory: Path,
        vocab: int,
        limit: int,
        trained: int,
        ends: Seq[int] = (),
    ) -> None:
        self.tokenizer, self.directory = tokenizer, directory
        self.vocabulary = None if tokenizer is None else Vocabulary(tokenizer, vocab, ends)
        self.vocab, self.limit, self.trained = vocab, limit, trained
        self.ids = count()
        self.own_answers = None if tokenizer is None else OwnAnswers(tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text with the special tokens that the model expects, and one BOS where the text spells it;
        raises TokenizerError."""
        if not isinstance(text, str):
            raise OptionError(f"a text is {brief(text)}: give a str")
        tokenizer = self.need_tokenizer("text prompts")
        ids = tokenizer.encode(text)
        return ids[1:] if tokenizer.has_two_starts(ids) else ids

    def spells_start(self, text: str) -> bool:
        """Whether a text begins with the start token that is put before it, and would have two."""
        tokenizer = self.need_tokenizer("text prompts")
        return tokenizer.has_two_starts(tokenizer.encode(text[:STARTS]))

    def chat(self, messages: Seq[Message], **rendering: Any) -> list[int]:
        """Token ids of a conversation, ready for the answer; rendering: as of `Tokenizer.render_chat`. Raises
        TokenizerError."""
        return self.chat_ids(self.need_tokenizer("chat").render_chat(messages, **rendering)).ids

    def chat_ids(self, prompt: str) -> PromptIds:
        """Token ids of a conversation's prompt, with the model's own tokens for its answers. Raises TokenizerError."""
        ids = self.need_tokenizer("chat").encode(prompt, add_special_tokens=False)
        return PromptIds(ids=ids) if self.own_answers is None else self.own_answers.splice(ids)

    def answer(
        self,
        messages: Seq[Message],
        params: SamplingParams,
        *,
        dialect: str | None = None,
        tool_choice: Any = None,
        **rendering: Any,
    ) -> tuple[Request, AnswerText]:
        """A request for the answer to a conversation, and what tells its reasoning, text and calls apart, by the
        dialect that the template writes, or `dialect`. Calls are held to their tools; tool_choice: as in OpenAI's API.
        Raises what `chat` and `request` raise."""
        tokenizer = self.need_tokenizer("chat")
        prompt, tools = tokenizer.render_chat(messages, **rendering), rendering.get("tools")
        template = tokenizer.template(rendering.get("template"), bool(tools)).text
        spoken = choose(tokenizer, template=template, wanted=dialect).dialect
        if tools and leaves_out(tool_choice):
            tools, params = None, barred(params, spoken, tokenizer)
        form = self._form(spoken, params, tools, tool_choice)
        return self.told_apart(self.chat_ids(prompt), params, spoken, tools, prompt, form)

    def _form(self, dialect: Dialect, params: SamplingParams, tools: Any, choice: Any) -> Grammar | None:
        """What an answer of a chat follows; raises OptionError."""
        form, vocabulary = Grammar.of_params(params), self.vocabulary
        assert vocabulary is not None, "a chat without a tokenizer"
        try:
            return of_chat(
                dialect, vocabulary, tools=tools, choice=choice, schema=schema_of(params),
                form=None if form is None else lambda: form,
            )  # fmt: skip
        except OptionError as error:
            if choice is None and not tools:
                raise
            raise OptionError(f"tool_choice: {error}") from None

    def told_apart(
        self,
        made: PromptIds,
        params: SamplingParams,
        dialect: Dialect | None,
        tools: Any = None,
        prompt: str = "",
        grammar: Grammar | None = None,
    ) -> tuple[Request, AnswerText]:
        """A request for what follows a prompt, and the events of its answer. dialect: how reasoning and calls are
        written; None: all is text. prompt: the text of a conversation's prompt; grammar: what the answer follows,
        behind its reasoning. Raises what `request` raises."""
        machine = None
        if dialect is not None:
            machine = start(dialect, tools=tools, prompt_tail=prompt[-TAIL:], tokenizer=self.tokenizer)
            params = replace(params, stop_token_ids=(*params.stop_token_ids, *self._ids_of(dialect.stop_tokens)))
        params = self._with_special_stops(params)
        text = AnswerText(self.tokenizer, machine, params.stop, params.include_stop_str_in_output)
        text.sequence = self._free_sequence(made.ids, params)
        text.sequence.spliced = made.answers
        if (form := grammar or Grammar.of_params(params)) is not None:
            text.sequence.constraint = self.constraint(form, text, dialect)
        own, place = self.own_answers, made.place
        keep = None if own is None or place is None else partial(own.keep, place)
        return Request(text.sequence, text, keep=keep), text

    def _ids_of(self, texts: Iterable[str]) -> list[int]:
        """Ids of those texts that are tokens."""
        found = [] if self.tokenizer is None else map(self.tokenizer.token_id, texts)
        return [one for one in found if one is not None]

    def need_tokenizer(self, purpose: str) -> Tokenizer:
        """The tokenizer; raises TokenizerError where the model has none."""
        if self.tokenizer is None:
            what, remedy = "has no tokenizer.json", "add it from the model's page"
            if self.directory.is_file():
                what, remedy = "holds no tokenizer", "get a file of the model that does"
            raise TokenizerError(
                f"{self.directory} {what}, which {purpose} need: {remedy}, or give prompts as lists of token ids"
            )
        return self.tokenizer

    def request(self, prompt: Prompt, params: SamplingParams) -> Request:
        """A request that can run; raises OptionError, ContextOverflow or TokenizerError."""
        params = self._with_special_stops(params)
        text = TextBuilder(self.tokenizer, params.stop, params.include_stop_str_in_output)
        return Request(self.sequence(prompt, params), text)

    def _with_special_stops(self, params: SamplingParams) -> SamplingParams:
        """A stop string that is a special token stops by its id: it never shows in the text."""
        if self.tokenizer is None or not (special := [s for s in params.stop if self.tokenizer.is_special(s)]):
            return params
        text = tuple(s for s in params.stop if s not in special)
        return replace(params, stop=text, stop_token_ids=(*params.stop_token_ids, *self._ids_of(special)))

    def sequence(self, prompt: Prompt, params: SamplingParams) -> Sequence:
        """Its sequence alone."""
        made = self._free_sequence(prompt, params)
        if (form := Grammar.of_params(params)) is not None:
            made.constraint = self.constraint(form)
        return made

    def _free_sequence(self, prompt: Prompt, params: SamplingParams) -> Sequence:
        """The same without a grammar."""
        ids = self.encode(prompt) if isinstance(prompt, str) else _ids(prompt)
        if not ids:
            raise OptionError("the prompt is empty, and this tokenizer adds no start token: give at least one token")
        bad = next((i for i in ids if not 0 <= i < self.vocab), None)
        if bad is not None:
            raise OptionError(f"token id {brief(bad)} is outside the vocabulary of {self.vocab} tokens")
        bad = next((i for i in params.logit_bias or () if not 0 <= i < self.vocab), None)
        if bad is not None:
            raise OptionError(f"logit_bias names token {brief(bad)}, and the vocabulary has {self.vocab} tokens")
        if params.stop:
            self.need_tokenizer("stop strings")
        if params.max_new_tokens == TO_THE_END:
            params = replace(params, max_new_tokens=self.room_behind(len(ids)))
        self._check_context(len(ids), params.max_new_tokens)
        return make_sequence(next(self.ids), ids, params)

    def constraint(
        self, grammar: Grammar, text: AnswerText | None = None, dialect: Dialect | None = None
    ) -> Constraint:
        """A grammar for one answer. text, dialect: of an answer that is told apart: its reasoning stays as it is, and
        so does what comes before the calls that a grammar waits for. Raises OptionError for a tokenizer that there are
        no grammars with."""
        self.need_tokenizer("grammars")
        vocabulary, machine = self.vocabulary, None if text is None else text.machine
        assert vocabulary is not None, "a tokenizer without a vocabulary"
        if grammar.waking is not None and text is not None:
            held = text.held = HeldCalls(
                partial(vocabulary.matcher, grammar), vocabulary.tokens_of, vocabulary.ends, grammar.waking,
                lambda: dialect is not None and dialect.drafts and machine is not None and machine.in_reasoning,
            )  # fmt: skip
            return held
        if machine is None or dialect is None or dialect.style == "channels":  # there reasoning is part of the grammar
            return vocabulary.constraint(grammar)
        return vocabulary.constraint(grammar, lambda: machine.in_reasoning, dialect.think[0] if dialect.think else ())

    def room_behind(self, prompt: int) -> int:
        """New tokens that the context has room for behind a prompt of so many; one at least."""
        return max(1, self.limit + 1 - prompt)  # the last new token is never written to the cache

    def _check_context(self, prompt: int, new: int) -> None:
        longest, limit = prompt + new, self.limit
        if prompt > limit:
            raise ContextOverflow(f"the prompt has {prompt} tokens, the context holds {limit}: {self._remedy()}")
        if longest > limit + 1:  # the last new token is never written to the cache
            raise ContextOverflow(
                f"{prompt} prompt token{'s' * (prompt != 1)} and {new} new ones are {longest}, the context holds "
                f"{limit}: lower max_new_tokens to {limit + 1 - prompt} or less, or {self._remedy()}"
            )

    def _remedy(self) -> str:
        if self.limit < self.trained:
            return f"raise max_context (this model allows {self.trained}) or shorten the prompt"
        return "shorten the prompt (the model was not trained for more)"


def as_prompts(prompts: Prompts) -> list[Prompt]:
    """A list of prompts; a single text or a single list of ids counts as a list of one."""
    many = items(prompts)
    if many is None:
        return [prompts] if isinstance(prompts, str) else _refuse(prompts)
    return [many] if many and all(_is_id(one) for one in many) else many


def as_params(params: Params, count: int) -> list[SamplingParams]:
    """Sampling parameters of so many prompts, from one for all or one for each."""
    several = items(params)
    each = [params] * count if several is None else several
    if len(each) != count:
        raise OptionError(f"{len(each)} sampling parameters for {count} prompts: give one, or one for each")
    return [_params(one) for one in each]


def _params(one: Any) -> SamplingParams:
    if one is None or isinstance(one, SamplingParams):
        return one or SamplingParams()
    if not isinstance(one, Mapping):
        raise OptionError(f"sampling parameters are {brief(one)}: give SamplingParams, or a dict of its fields")
    return SamplingParams(**{str(name): value for name, value in one.items()})


def _is_id(value: object) -> bool:
    """Whether a value stands for one token, and not for a prompt."""
    return type(value) is int or (items(value) is None and not isinstance(value, str | bytes | Mapping))


def _ids(prompt: Any) -> list[int]:
    """Token ids from a list, a tuple, a range, an array or a tensor of one dimension."""
    many = items(prompt)
    return [one if type(one) is int else _id(one) for one in (_refuse(prompt) if many is None else many)]


def _id(value: Any) -> int:
    try:
        return whole(value) if _is_id(value) else _refuse(value)
    except (TypeError, ValueError, OverflowError):
        raise OptionError(f"token id {brief(value)} is no whole number: give ids of the vocabulary") from None


def _refuse(prompt: object) -> Any:
    raise OptionError(f"a prompt is {brief(prompt)}: give text, or a list of token ids")
