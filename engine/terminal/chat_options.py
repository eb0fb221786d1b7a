"""What `headrace generate` asks a model: texts to complete as they are, or a chat put into the model's template."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import OptionError
from ...loaders.tokens.dialects import families
from ...loaders.tokens.template_files import named_or_in_file
from ..config import TO_THE_END, SamplingParams
from ..option import COMMON, option
from . import output

CHAT = "Chat"  # a panel of --help
STANDARD_INPUT = "-"
MOST_INPUT = 64 << 20  # bytes: more than any context holds


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """interactive: a conversation. chat: each prompt is a question of its own. messages: a conversation so far, as
    clients of OpenAI's API send it, with tools and arguments of the template if it holds some."""

    interactive: bool = option(
        False,
        COMMON,
        "",
        "chat, keeping the history; without -n an answer may take half of the context left",
        short="-i",
    )
    chat: bool = option(False, COMMON, "", "put the prompt into the model's chat template")
    system: str | None = option(None, COMMON, "TEXT", "system message of a chat")
    messages: Path | None = option(None, CHAT, "FILE", "conversation so far: JSON, as OpenAI's API has it")
    tools: Path | None = option(None, CHAT, "FILE", "functions that the model may call: JSON, as OpenAI's API has them")
    template_arg: tuple[str, ...] = option((), CHAT, "NAME=VALUE", "for the chat template, as enable_thinking=false")
    chat_template: str | None = option(None, CHAT, "NAME|FILE", "which of the model's templates, or one in a file")
    dialect: str | None = option(None, CHAT, "NAME", "with -i: how reasoning and calls are written, if not as it says")

    def check(self, prompts: Sequence[str], as_json: bool) -> None:
        """Raises OptionError unless this goes with the prompts and the output that were asked for, and can be read."""
        if not prompts and not self.interactive and self.messages is None:
            raise OptionError(
                'no prompt: headrace generate MODEL "text", - to read it from standard input, or -i for a chat'
            )
        if self.interactive and (prompts or as_json):
            odd = "PROMPTS" if prompts else "--json"
            raise OptionError(f"-i asks for prompts and prints text as it comes: leave out {odd}")
        if self.messages is not None and len(prompts) > 1:
            raise OptionError("--messages is one conversation: give one prompt, which is asked at its end, or none")
        part = next(
            (name for name in ("system", "tools", "template_arg", "chat_template") if getattr(self, name)), None
        )
        if part and not self.is_chat:
            raise OptionError(f"--{part.replace('_', '-')} is part of a chat: add --chat, or -i")
        if self.dialect is not None and not self.interactive:
            raise OptionError("--dialect says how answers of -i are read: leave it out, or add -i")
        if self.dialect is not None:
            families.named(self.dialect)
        _ = self.start, self.settings

    @property
    def is_chat(self) -> bool:
        """Whether prompts are put into a template."""
        return self.chat or self.interactive or self.messages is not None

    def params(self, sampling: dict[str, Any]) -> SamplingParams:
        """How tokens are chosen. Unless it is said, an answer of a conversation ends where the model ends it."""
        if self.interactive and sampling["max_new_tokens"] is None:
            sampling = {**sampling, "max_new_tokens": TO_THE_END}
        return SamplingParams(**sampling)

    @cached_property
    def start(self) -> list[dict[str, Any]]:
        """The conversation before the first question."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self._request.get("messages", [])]

    def conversations(self, prompts: Sequence[str]) -> list[list[dict[str, Any]]]:
        """One for each prompt, asked at its end; the messages alone without a prompt."""
        questions = [{"role": "user", "content": text} for text in prompts]
        return [[*self.start, question] for question in questions] if questions else [self.start]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """How conversations are rendered, as `Admission.chat` takes it."""
        given = dict(_argument(text) for text in self.template_arg)
        tools = _read_json(self.tools, "--tools") if self.tools is not None else self._request.get("tools")
        return {
            "tools": tools.get("tools") if isinstance(tools, dict) else tools,
            "template": named_or_in_file(self.chat_template),
            "arguments": {**(self._request.get("chat_template_kwargs") or {}), **given},
        }

    @cached_property
    def _request(self) -> dict[str, Any]:
        """What --messages holds: a list of messages, or the body of a request."""
        found = {} if self.messages is None else _read_json(self.messages, "--messages")
        found = {"messages": found} if isinstance(found, list) else found
        if self.messages is not None and not isinstance(found.get("messages"), list):
            raise OptionError(f'--messages: {self.messages} holds no list of messages, nor an object with "messages"')
        return found


def prompt_of(argument: str) -> str:
    """The prompt that an argument says: the text itself, or "-" for standard input, without its last line break.

    Raises OptionError for input without end, or without text."""
    if argument != STANDARD_INPUT:
        return output.typed(argument)
    stream = getattr(sys.stdin, "buffer", sys.stdin)  # bytes are UTF-8, whatever the locale is
    data = stream.read(MOST_INPUT + 1)
    if len(data) > MOST_INPUT:
        raise OptionError(f"standard input has more than {MOST_INPUT >> 20} MiB: give a prompt that a context holds")
    text = data.decode(errors="replace") if isinstance(data, bytes) else data
    if not (text := text.removesuffix("\n").removesuffix("\r")):
        raise OptionError("the prompt is '-' and standard input is empty: pipe text into it, or give the text itself")
    return text


def _argument(text: str) -> tuple[str, Any]:
    """Name and value of NAME=VALUE; what is JSON is read as that: false, 3, [1, 2]."""
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise OptionError(f"--template-arg is '{text}': give NAME=VALUE, as enable_thinking=false")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def _read_json(path: Path, name: str) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise OptionError(f"{name}: cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{name}: {path} is no JSON ({error})") from error
    if not isinstance(found, (list, dict)):
        raise OptionError(f"{name}: {path} holds a {type(found).__name__} where a list or an object is needed")
    return found
