"""The sandbox that chat templates run in: no way to Python or the machine, and no more than so much text and time.

jinja's own sandbox keeps a template from attributes of Python's objects. What it leaves is a bomb: `"a" * 10**10`, or a
text that a loop doubles. So whatever makes a text or list longer (operators, methods of texts, filters) is asked first
how long the result will be (`template_limits.py`); and a thread that waits tells a template to stop whose time is over.
"""

from __future__ import annotations

import ctypes
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.lexer import Token, TokenStream
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEscapeFormatter, SandboxedFormatter
from jinja2.utils import Namespace
from markupsafe import Markup

from . import template_limits
from .template_limits import joined, made, weigh

SECONDS = 20.0  # for one rendering; a server has a shorter limit of its own
AGAIN_S = 0.2  # until it is told once more: what is raised inside of a `__del__` is lost
LONGEST_PATTERN = 1000  # characters of a date's format


@contextmanager
def bounded(seconds: float | None = None) -> Iterator[None]:
    """The body may take so many seconds, and make so much text; raises TimeoutError or jinja's SecurityError in it."""
    made.begin()
    lock, ended, thread = threading.Lock(), threading.Event(), ctypes.c_ulong(threading.get_ident())
    state = {"over": False, "stopped": False}

    def stop() -> None:
        wait = SECONDS if seconds is None else seconds
        while not ended.wait(wait):
            with lock:
                if state["over"]:
                    return
                state["stopped"] = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(TimeoutError))
            wait = AGAIN_S

    try:
        threading.Thread(target=stop, daemon=True).start()  # which may take longer than the limit
        yield
    finally:
        state["over"] = True  # before anything that could be stopped itself
        try:
            with lock:  # who was about to raise has done so
                ended.set()
        finally:
            made.begin()  # it holds lists of the conversation
            if state["stopped"]:  # where the body was over by then, nothing may be raised behind it
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None)


class _Generator(CodeGenerator):
    """Code in which `~` and lists ask the sandbox: jinja calls functions of its own there, which nobody can replace."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for one in node.nodes:
            self.visit(one, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._weighed(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._weighed(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._weighed(super().visit_Tuple, node, frame)
        else:  # names that are set
            super().visit_Tuple(node, frame)

    def _weighed(self, visit: Callable[[Any, Frame], None], node: nodes.Node, frame: Frame) -> None:
        self.write("environment.weighed(")
        visit(node, frame)
        self.write(")")


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja's environment for chat templates, as transformers sets it up, with limits."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(template_limits.OF_OPERATORS)
    weighed = staticmethod(template_limits.weighed)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        self.filters["tojson"] = _to_json
        for name, check in template_limits.OF_FILTERS.items():
            self.filters[name] = _checked(self.filters[name], check)
        for name, most in template_limits.OF_LISTS.items():
            self.filters[name] = _of_a_list(self.filters[name], most)
        self.filters["join"] = template_limits.join_filter
        del self.globals["lipsum"]
        helpers: dict[str, Callable[..., Any]] = {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "namespace": _Namespace,
            # A function instead of the type, so that a template cannot walk from it to Python's types.
            "dict": _make_dict,
        }
        self.globals.update(helpers)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """What a template, a macro or a block has written."""
        return joined(parts)

    @staticmethod
    def joined(parts: Iterable[Any]) -> str:
        """`~`"""
        return joined(map(str, parts))

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        """jinja prints nothing for a forbidden attribute; a template that asks for one is refused instead."""
        raise SecurityError(f"access to attribute {attribute!r} of a {type(obj).__name__} is unsafe")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """jinja's own safe form of `str.format`, with limits."""
        if super().wrap_str_format(value) is None:
            return None

        def safe(*args: Any, **named: Any) -> str:
            text = value.__self__
            formatter = _EscapeFormatter(self, escape=text.escape) if isinstance(text, Markup) else _TextFormatter(self)
            if value.__name__ != "format_map":
                return str(formatter.vformat(text, args, named))
            (mapping,) = args
            return str(formatter.vformat(text, (), mapping))

        return safe

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        template_limits.operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if name in ("to_bytes", "from_bytes") or (isinstance(owner, (bytes, bytearray)) and name != "decode"):
            raise SecurityError("it computes with bytes")
        if isinstance(owner, str) and name == "join":
            return template_limits.join_method(owner, *args, **kwargs)
        if isinstance(owner, str) and name in template_limits.OF_METHODS:
            template_limits.OF_METHODS[name](owner, *args, **kwargs)
        for value in (*args, *kwargs.values()):
            weigh(value)
        return super().call(__context, __obj, *args, **kwargs)


class _Bounded(SandboxedFormatter):
    """`str.format` that knows how long its text has become: a field may stand in it many times."""

    length = 0

    def format_field(self, value: Any, spec: str) -> Any:
        for digits in re.findall(r"\d+", spec):
            template_limits.width(digits)
        weigh(value)
        text = super().format_field(value, spec)
        self.length += len(text)
        made.add(self.length)
        return text


class _TextFormatter(_Bounded):
    pass


class _EscapeFormatter(_Bounded, SandboxedEscapeFormatter):
    pass


def _checked(filter: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    """A filter that is asked first. jinja marks some filters: they take the environment, or a context, in front."""
    marks = vars(filter)
    skipped = 1 if marks else 0

    def asked(*args: Any, **named: Any) -> Any:
        check(*args[skipped:], **named)
        return filter(*args, **named)

    vars(asked).update(marks)
    return asked


def _of_a_list(filter: Callable[..., Any], most: int) -> Callable[..., Any]:
    """A filter that is given a list, of no more items than there may be."""
    marks = vars(filter)
    place = 1 if marks else 0

    def asked(*args: Any, **named: Any) -> Any:
        return filter(*args[:place], template_limits.listed(args[place], most), *args[place + 1 :], **named)

    vars(asked).update(marks)
    return asked


class _Generation(Extension):
    """`{% generation %}` marks for trainers what the assistant said; here its body is simply rendered."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        """Numbers in the text are no longer than those that are computed."""
        for token in stream:
            value: object = token.value
            if isinstance(value, int):
                template_limits.bits(value.bit_length())
            yield token


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

    def __repr__(self) -> str:
        """Without what is in it, which may be others, and those in them."""
        return "<Namespace>"


def _check_public(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold the name {name!r}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja's own filter escapes for HTML, and a model has never seen `\\u003c` in its training."""
    weight = weigh(value)
    wide = len(indent) if isinstance(indent, str) else indent or 0
    template_limits.numbers(wide)
    around = weight.depth * wide + 2 + sum(map(len, separators or ()))
    made.add(weight.size + weight.items * around)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    if len(pattern) > LONGEST_PATTERN:
        raise SecurityError(f"it writes a date by a format of {len(pattern):,} characters")
    for digits in re.findall(r"\d+", pattern):
        template_limits.width(digits)
    return datetime.now().strftime(pattern)


def _make_dict(*args: Any, **values: Any) -> dict[str, Any]:
    return dict(*args, **values)
