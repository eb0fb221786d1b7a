"""How a chat becomes one prompt: chat templates, in the dialect of jinja that transformers has made of it.

Chat templates are code written by strangers and run in jinja's sandbox. The sandbox keeps a template away from Python
and the machine; it does not bound its time or memory.
This file does not know in which file of a model its template is, nor what the tokens in it mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from ...errors import TokenizerError


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A template's text, the special tokens that it may spell (`bos_token`), and the name that errors give."""

    text: str
    tokens: Mapping[str, str]
    source: str

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        """The prompt for `messages`, which `check_messages` has seen.

        Raises TokenizerError if the template refuses the messages, is faulty, or tries what the sandbox forbids.
        """
        values = {"messages": [dict(message) for message in messages], "tools": None, "documents": None}
        try:
            return self._compiled.render(values, add_generation_prompt=add_generation_prompt, **self.tokens)
        # A template is a stranger's code: besides jinja's errors it can raise whatever its expressions raise.
        except Exception as error:
            kind = "does what the sandbox forbids" if isinstance(error, SecurityError) else "failed"
            raise TokenizerError(
                f"the chat template of {self.source} {kind}: {error or type(error).__name__}; "
                "check the roles and their order, or give the prompt as plain text"
            ) from error

    @cached_property
    def _compiled(self) -> Template:
        return _sandbox().from_string(self.text)


def check_messages(messages: list[dict[str, str]]) -> None:
    """Raise TokenizerError unless there is a message, and each has a role and a content."""
    if not messages:
        raise TokenizerError("the chat is empty: give at least one message with a role and a content")
    for place, message in enumerate(messages):
        for key in ("role", "content"):
            if not isinstance(message, dict) or not isinstance(message.get(key), str):
                raise TokenizerError(
                    f"message {place} of the chat has no {key} (a string): each message is an object "
                    'such as {"role": "user", "content": "Hello"}'
                )


# What chat templates expect of jinja beyond jinja itself. The dialect is transformers' own.


class _Sandbox(ImmutableSandboxedEnvironment):
    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        """jinja prints nothing for a forbidden attribute; a template that asks for one is refused instead."""
        raise SecurityError(f"access to attribute {attribute!r} of a {type(obj).__name__} is unsafe")


class _Generation(Extension):
    """`{% generation %}` marks for trainers what the assistant said; here its body is simply rendered."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """Names with a leading underscore are Python's own (`__class__`); a template has no business with them."""

    def __init__(*args: Any, **values: Any) -> None:
        self, *given = args
        named = dict(*given, **values)
        for name in named:
            _check_public(name)
        Namespace.__init__(self, named)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        Namespace.__setitem__(self, name, value)


def _check_public(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold the name {name!r}")


def _sandbox() -> _Sandbox:
    sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
    sandbox.filters["tojson"] = _to_json
    helpers: dict[str, Callable[..., Any]] = {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "namespace": _Namespace,
        # A function instead of the type, so that a template cannot walk from it to Python's types.
        "dict": _make_dict,
    }
    sandbox.globals.update(helpers)
    return sandbox


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja's own filter escapes for HTML, and a model has never seen `\\u003c` in its training."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _make_dict(*args: Any, **values: Any) -> dict[str, Any]:
    return dict(*args, **values)
