"""Arguments that stand between marks one by one: keys in the order of the schema, each with a value that it allows.

A text stands there as it is, and ends where a mark follows that can only be the next one: so what a grammar leaves free
is without all that the reader of the dialect would take for such a place. Everything else is JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

from .....errors import OptionError, brief
from ..arguments import ANY, TEXT, Tools
from ..dialect import Dialect, Form, Tags
from ..lexer import FIRST
from . import schemas
from .lark import Lark, pattern
from .schemas import Schema

_KEY = re.compile(r"[^\s<>\"'{}\x00-\x1f]{1,100}")
_SPACES = r"[ \t\r\n]*"
FREE_KEY = "/[A-Za-z_][A-Za-z0-9_.\\-]{0,40}/"


class Value(NamedTuple):
    """One way to write a value. is_text: as it is, else as JSON. body: a terminal of text, or a rule."""

    is_text: bool
    body: str
    is_free: bool  # a text that ends only where the next mark stands


class TagArguments:
    """Writes the arguments of one tool."""

    def __init__(self, lark: Lark, dialect: Dialect, form: Form, tools: Tools, tool: str) -> None:
        assert dialect.tags is not None, f"{dialect.name} has no tags"
        self.lark, self.dialect, self.form, self.tools, self.tool = lark, dialect, form, tools, tool
        self.tags: Tags = dialect.tags
        self.whole = tools.schemas.get(tool)
        self.named, self.needed = schemas.names_and_needed(self.whole)
        for name in self.named:
            if not _KEY.fullmatch(name):
                raise OptionError(f"parameter {brief(name)} of {tool} cannot be written in the dialect {dialect.name}")
        self.names = list(self.named)
        self.more = form.gap + self.tags.key  # what follows a value's end: another key, or the end
        self.last = form.gap + self.tags.end[0]
        self._rules: dict[int, str] = {}  # by the place of the first key that may come
        self.saying = {says for _, says in self.tags.key_end} - {None}

    def body(self) -> str:
        """All of them, up to the mark that ends the call."""
        nothing = self.lark.text(self.tags.end[0])
        if not self.names:
            return self._any() if schemas.allows_others(self.whole) else nothing
        some = f"{self.lark.text(self.tags.key)} {self._from(0)}"
        return self.lark.rule(some if self.needed else f"{some} | {nothing}")

    def _from(self, place: int) -> str:
        """What follows the mark before a key, of which the earlier ones are written or left out."""
        if place not in self._rules:
            ways = [self._with(place)]
            if self.names[place] not in self.needed and place + 1 < len(self.names):
                ways.append(self._from(place + 1))
            self._rules[place] = self.lark.rule(" | ".join(ways))
        return self._rules[place]

    def _with(self, place: int) -> str:
        name = self.names[place]
        is_last, may_end = place + 1 == len(self.names), not self.needed & {*self.names[place + 1 :]}
        ways = []
        for value in self._values(name):
            head = self._head(name, value.is_text)
            if not is_last:
                ways.append(f"{head} {self._ended(value, self.more)} {self._from(place + 1)}")
            if may_end:
                ways.append(f"{head} {self._ended(value, self.last)}")
        return self.lark.rule(" | ".join(ways))

    def _head(self, name: str, is_text: bool) -> str:
        """A key and what stands before its value."""
        ends = {says: mark for mark, says in self.tags.key_end}
        return self.lark.text(name + ends[is_text if is_text in ends else None] + self.form.value)

    def _ended(self, value: Value, end: str) -> str:
        end = self.tags.value_end[0] + end
        return self.lark.free(value.body, end) if value.is_free else f"{value.body} {self.lark.text(end)}"

    def _any(self) -> str:
        """Keys that nobody named, with values of any kind."""
        key = self.lark.terminal(FREE_KEY)
        schema = self.whole.get("additionalProperties") if isinstance(self.whole, Mapping) else None
        schema = schema if isinstance(schema, Mapping) else {}
        value = self.lark.json(schemas.part(schema, self.whole))
        mark = next(mark for mark, says in reversed(self.tags.key_end) if says is not True)
        head = f"{key} {self.lark.text(mark + self.form.value)} {value}"
        end = self.tags.value_end[0]
        again = self.lark.reserve()
        self.lark.fill(
            again, f"{head} {self.lark.text(end + self.more)} {again} | {head} {self.lark.text(end + self.last)}"
        )
        return self.lark.rule(f"{self.lark.text(self.tags.key)} {again} | {self.lark.text(self.tags.end[0])}")

    # ---- values

    def _values(self, name: str) -> list[Value]:
        """The ways to write the value of a parameter, such that the reader finds what the schema allows."""
        schema, kinds = self.named[name], self.tools.kinds(self.tool, name)
        as_json = Value(False, self.lark.json(schemas.part(schema, self.whole)), False)
        if schemas.is_open(schema):
            return [self._text({}), *([as_json] if self.saying else [])]
        if kinds == TEXT:
            return self._texts(schema)
        if "string" not in kinds or kinds == ANY:
            return [as_json]
        if self.saying:
            return [*self._texts(schema), as_json]
        if kinds == {"string", "null"}:
            found = self._texts(schema)
            return found if any(one.is_free for one in found) else [*found, Value(False, '"null"', False)]
        return [as_json]

    def _texts(self, schema: Schema) -> list[Value]:
        """The ways to write a text."""
        found = []
        for one in schemas.alternatives(schema, self.whole):
            if not isinstance(one, Mapping) or one.get("type", "string") != "string":
                continue
            if len(one.get("allOf") or ()) > 1:
                raise OptionError(f"a parameter of {self.tool} has several schemas at once (allOf), which is too many")
            if (values := schemas.literals(one)) is not None:
                texts = [self.lark.text(value) for value in values if isinstance(value, str) and value]
                found += [Value(True, self.lark.rule(" | ".join(texts)), False)] if texts else []
            else:
                found.append(self._text(one))
        return found

    def _text(self, schema: Mapping[str, Any]) -> Value:
        return Value(True, self.lark.without(self._places, schemas.text_limits(schema)), True)

    @cached_property
    def _places(self) -> list[str]:
        """Where a reader would end a text: patterns of marks that are no tokens, since text has no tokens."""
        section = self.dialect.section or ((), ())
        key, ends = [self.tags.key], [*self.tags.end]
        stops = [*section[0], *section[1], *self.dialect.call[0], *self.dialect.call[1]]
        value_ends = {mark.lstrip("\n") for mark in self.tags.value_end}
        behind = self._either([*key, *ends, *stops])
        closers = self._either([*ends, *section[1], *self.dialect.call[1]])
        found = [f"{end}{_SPACES}{behind}" for end in [self._either(value_ends)] if end and behind]
        if closers and (stop := self._either(stops)):
            found.append(f"{closers}{_SPACES}{stop}")
        if (mark := self._either(key)) and self.names:
            found.append(f"{mark}[ \\t]*({'|'.join(map(pattern, self.names))})[ \\t]*{self._either_key_end()}")
        return found

    def _either_key_end(self) -> str:
        return self._either([mark for mark, _ in self.tags.key_end]) or ""

    def _either(self, marks: Any) -> str:
        """A pattern of those marks that are text; "" if there are none."""
        spelled = [self.lark.vocabulary.spell(mark) for mark in marks]
        texts = [one for one in spelled if all(ord(sign) < FIRST or ord(sign) > 0xDFFF for sign in one)]
        return f"({'|'.join(map(pattern, texts))})" if texts else ""
