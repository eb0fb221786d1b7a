"""The sandbox that chat templates run in: no way to Python or the machine, and no more than so much text and time.

jinja's own sandbox keeps a template from attributes of Python's objects. What it leaves is a bomb: `"a" * 10**10`, or a
text that a loop doubles. So whatever makes a text or list longer (operators, methods of texts, filters) is asked first
how long the result will be; and a thread that waits tells a template to stop whose time is over.
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
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

SECONDS = 20.0  # for one rendering; a server has a shorter limit of its own
MOST_TEXT = 1 << 26  # characters of one text: ten times the longest context of any model
MOST_ITEMS = 1 << 22  # of one list
MOST_MADE = 1 << 31  # characters and items that one rendering makes in all
MOST_NUMBER = 1_000_000  # a width, a count: more has no use in a prompt
MOST_BITS = 4096  # of a whole number
_WIDE = re.compile(r"[1-9]\d{6}")  # a width in a format


class _Made(threading.local):
    """What the rendering in this thread has made so far, and whether it may take a text of so many characters more."""

    total = 0

    def add(self, count: int, most: int = MOST_TEXT) -> None:
        self.total += count
        if count > most or self.total > MOST_MADE:
            raise SecurityError(f"it makes texts or lists of more than {min(most, MOST_MADE):,} characters or items")


_made = _Made()


@contextmanager
def bounded(seconds: float | None = None) -> Iterator[None]:
    """The body may take so many seconds, and make so much text; raises TimeoutError or jinja's SecurityError in it."""
    _made.total = 0
    lock, thread = threading.Lock(), ctypes.c_ulong(threading.get_ident())
    state = {"over": False, "stopped": False}

    def stop() -> None:
        with lock:
            if not state["over"]:
                state["stopped"] = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(TimeoutError))

    timer = threading.Timer(SECONDS if seconds is None else seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            state["over"] = True
        timer.cancel()
        if state["stopped"]:  # where the body was over by then, nothing may be raised behind it
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None)


class _Generator(CodeGenerator):
    """Code in which `~` asks the sandbox: jinja calls a function of its own there, which nobody can replace."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for one in node.nodes:
            self.visit(one, frame)
            self.write(", ")
        self.write("))")


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja's environment for chat templates, as transformers sets it up, with limits."""

    code_generator_class = _Generator
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        self.filters["tojson"] = _to_json
        for name, check in _OF_FILTERS.items():
            self.filters[name] = _checked(self.filters[name], check)
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
        """jinja's own safe form of `str.format`, asked first."""
        safe = super().wrap_str_format(value)
        if safe is None:
            return None

        def asked(*args: Any, **named: Any) -> str:
            _format(value.__self__, *args, **named)
            return safe(*args, **named)

        return asked

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _OF_OPERATORS[operator](left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str) and name in _OF_METHODS:
            _OF_METHODS[name](owner, *args, **kwargs)
        return super().call(__context, __obj, *args, **kwargs)


def joined(parts: Iterable[str], between: int = 0) -> str:
    """Texts as one, if it is not too long. between: characters between two."""
    pieces = []
    length = 0
    for part in parts:
        length += len(part) + between
        if length > MOST_TEXT:
            break
        pieces.append(part)
    _made.add(length)
    return "".join(pieces)


def _plus(left: Any, right: Any) -> None:
    if isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
        _made.add(len(left) + len(right), MOST_TEXT if isinstance(left, str) else MOST_ITEMS)


def _times(left: Any, right: Any) -> None:
    for one, other in ((left, right), (right, left)):
        if isinstance(one, (str, list, tuple)) and isinstance(other, int):
            _made.add(len(one) * max(0, other), MOST_TEXT if isinstance(one, str) else MOST_ITEMS)
    if isinstance(left, int) and isinstance(right, int):
        _bits(left.bit_length() + right.bit_length())


def _power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _bits(left.bit_length() * abs(right))


def _bits(count: int) -> None:
    if count > MOST_BITS:
        raise SecurityError(f"it computes a number of more than {MOST_BITS} bits")


def _modulo(left: Any, right: Any) -> None:
    if isinstance(left, str):
        _format(left, *(right if isinstance(right, tuple) else (right,)))


def _format(pattern: str, *values: Any, **named: Any) -> None:
    if _WIDE.search(pattern):
        raise SecurityError(f"it formats to a width of more than {MOST_NUMBER:,} characters")
    if "*" in pattern or "{" in pattern:
        _numbers(*values, *named.values())
    _made.add(len(pattern) + sum(len(one) for one in (*values, *named.values()) if isinstance(one, str)))


def _numbers(*values: Any) -> None:
    """Widths and counts."""
    for value in values:
        if isinstance(value, int) and abs(value) > MOST_NUMBER:
            raise SecurityError(f"it asks for {value:.3g} of something, {MOST_NUMBER:,} are the most")


def _padded(text: Any, *values: Any, **named: Any) -> None:
    _numbers(*values, *named.values())
    _made.add(max(0, 0, *(one for one in (*values, *named.values()) if isinstance(one, int))))


def _tabs(text: str, size: Any = 8) -> None:
    _numbers(size)
    _made.add(len(text) + text.count("\t") * max(0, size))


def _replaced(text: Any, old: Any = "", new: Any = "", *count: Any) -> None:
    text, old, new = str(text), str(old), str(new)
    _made.add(len(text) + (text.count(old) if old else len(text) + 1) * len(new))


def _lines(text: Any, width: Any = 4, *flags: Any, **named: Any) -> None:
    """Each line gets that many characters in front, or that text."""
    _numbers(width)
    wide = len(width) if isinstance(width, str) else width
    _made.add(len(str(text)) + (str(text).count("\n") + 1) * wide)


def _items(values: Any, count: Any = 1, *rest: Any, **named: Any) -> None:
    _numbers(count, *named.values())


def _joined_by(between: str, values: Any = ()) -> None:
    if isinstance(values, (list, tuple)):
        _made.add(sum(len(one) + len(between) for one in values if isinstance(one, str)))


def _joined_filter(values: Any, between: Any = "", *rest: Any, **named: Any) -> None:
    if isinstance(values, (list, tuple)):
        _joined_by(str(between), [one if isinstance(one, str) else "" for one in values])


def _summed(values: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, (int, float)):
        raise SecurityError("it sums what are no numbers")


def _checked(filter: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    """A filter that is asked first. jinja marks some filters: they take the environment, or a context, in front."""
    marks = vars(filter)
    skipped = 1 if marks else 0

    def asked(*args: Any, **named: Any) -> Any:
        check(*args[skipped:], **named)
        return filter(*args, **named)

    vars(asked).update(marks)
    return asked


_OF_OPERATORS: dict[str, Callable[[Any, Any], None]] = {"+": _plus, "*": _times, "**": _power, "%": _modulo}
_OF_METHODS: dict[str, Callable[..., None]] = {
    "center": _padded, "ljust": _padded, "rjust": _padded, "zfill": _padded, "expandtabs": _tabs, "replace": _replaced,
    "join": _joined_by,
}  # fmt: skip
_OF_FILTERS: dict[str, Callable[..., None]] = {
    "center": _padded, "indent": _lines, "wordwrap": _items, "batch": _items, "slice": _items, "round": _items,
    "truncate": _items, "format": _format, "replace": _replaced, "join": _joined_filter, "sum": _summed,
    "tojson": _items, "pprint": _items,
}  # fmt: skip


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
