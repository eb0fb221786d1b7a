"""How a chat becomes one prompt: chat templates, in the dialect of jinja that transformers has made of it.

Chat templates are code written by strangers and run in jinja's sandbox. The sandbox keeps a template away from Python
and the machine; it does not bound its time or memory.
This file does not know in which file of a model its template is, nor what the tokens in it mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
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
from .conversation import Message, normalise, tools_of

RESERVED = frozenset({"messages", "tools", "add_generation_prompt"})
# A call whose argument shows how a template writes arguments.
PROBE = "probed_key"


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A template's text, the special tokens that it may spell (`bos_token`), and the name that errors give."""

    text: str
    tokens: Mapping[str, str]
    source: str

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        tools: Any = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for `messages`. tools: functions that may be called. arguments: what else the template reads, as
        enable_thinking.

        Raises TokenizerError if a message or tool is none, if the template refuses the messages, is faulty, or tries
        what the sandbox forbids.
        """
        arguments = arguments or {}
        if taken := RESERVED & {*arguments}:
            raise TokenizerError(f"{min(taken)} is no argument of a template: it is given by the chat itself")
        chat = normalise(messages, as_mapping=self._takes_mappings, developer="developer" in self.text)
        values = {"documents": None, **self.tokens, **arguments, "messages": chat, "tools": tools_of(tools)}
        try:
            return self._compiled.render(values, add_generation_prompt=add_generation_prompt)
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

    @cached_property
    def _takes_mappings(self) -> bool:
        """Whether arguments of calls are to be mappings: unless that fails, or gives Python's spelling of one, and text
        does not."""
        if "tool_calls" not in self.text:
            return True
        written = [self._probe(value) for value in ({PROBE: "x"}, json.dumps({PROBE: "x"}))]
        return f'"{PROBE}' in written[0] or f'"{PROBE}' not in written[1]

    def _probe(self, arguments: Any) -> str:
        """What the template writes of a call with these arguments."""
        call = {"id": "000000000", "type": "function", "function": {"name": "f", "arguments": arguments}}
        messages = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "000000000", "name": "f", "content": "b"},
        ]
        try:
            return self._compiled.render(messages=messages, tools=None, documents=None, **self.tokens)
        # A stranger's code: that it fails in whatever way is the answer to what is asked here.
        except Exception:
            return ""


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
