"""Arguments as Gemma 4 writes them: JSON whose keys have no quotes, and whose texts stand between marks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .....errors import OptionError, brief
from ..dialect import Dialect
from ..tagged import QUOTE
from . import schemas
from .lark import Lark, pattern
from .schemas import Schema
from .tags import FREE_KEY

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,99}")
_SPACES = r"[ \t\r\n]*"
_NUMBERS = ("integer", "number", "boolean", "null")


class BraceArguments:
    """Writes the arguments of one tool. whole: its schema."""

    def __init__(self, lark: Lark, dialect: Dialect, whole: Schema) -> None:
        self.lark, self.whole = lark, whole
        spell = lark.vocabulary.spell
        closers = [mark for mark in dialect.call[1] if spell(mark) == mark]
        openers = [mark for mark in (*dialect.call[0], *dialect.call[1]) if spell(mark) == mark]
        self.bad = [f"{pattern(one)}{_SPACES}({'|'.join(map(pattern, openers))})" for one in closers]
        self._known: dict[str, str] = {}

    def body(self) -> str:
        """All of them, braces included."""
        whole = self.whole if isinstance(self.whole, Mapping) else {}
        return self._object({**whole, "type": "object"})

    def _value(self, schema: Schema) -> str:
        """A value; of schemas that refer to themselves rules that do."""
        key = json.dumps(schema)
        if key not in self._known:
            self._known[key] = self.lark.reserve()
            ways = [self._one(one) for one in schemas.alternatives(schema, self.whole)]
            self.lark.fill(self._known[key], " | ".join(ways))
        return self._known[key]

    def _one(self, schema: Schema) -> str:
        if schemas.is_open(schema):
            return self._anything()
        if not isinstance(schema, Mapping):
            raise OptionError("the schema of a tool allows a parameter no value")
        if (values := schemas.literals(schema)) is not None:
            return self.lark.rule(" | ".join(map(self._literal, values)))
        kind = schema.get("type")
        if kind is None:
            kind = "object" if "properties" in schema else "array" if "items" in schema else None
        if kind == "string":
            return self._text(schema)
        if kind == "object":
            return self._object(schema)
        if kind == "array":
            return self._list(schema)
        if kind in _NUMBERS:
            return self.lark.json(schema)
        raise OptionError(f"the schema {brief(json.dumps(schema))} of a tool is of no kind that can be written")

    def _anything(self) -> str:
        kinds = [{"type": kind} for kind in (*_NUMBERS, "string", "array", "object")]
        return " | ".join(map(self._value, kinds))

    def _literal(self, value: Any) -> str:
        if isinstance(value, str):
            return self.lark.text(f"{QUOTE}{value}{QUOTE}")
        if isinstance(value, (dict, list)):
            raise OptionError(f"a tool has a parameter whose value is to be {brief(json.dumps(value))}: list its parts")
        return json.dumps(json.dumps(value))

    def _text(self, schema: Mapping[str, Any]) -> str:
        text = self.lark.without(self.bad, schemas.text_limits(schema))
        return self.lark.rule(f"{self.lark.text(QUOTE)} {self.lark.free(text, QUOTE)}")

    def _list(self, schema: Mapping[str, Any]) -> str:
        least, most = int(schema.get("minItems") or 0), schema.get("maxItems")
        if most == 0:
            return '"[" "]"'
        item = self._value(schema.get("items", True))
        times = f"{{{max(0, least - 1)},{'' if most is None else int(most) - 1}}}"
        some = f'"[" {item} ("," {item}){times} "]"'
        return self.lark.rule(some if least else f'{some} | "[" "]"')

    def _object(self, schema: Mapping[str, Any]) -> str:
        named, needed = schemas.names_and_needed(schema)
        names = list(named)
        for name in names:
            if not _KEY.fullmatch(name):
                raise OptionError(f"parameter {brief(name)} of a tool cannot be written in the dialect gemma-4")
        if not names:
            return self._free_object(schema)

        def rest(place: int, comma: str) -> str:
            """Properties from a place on, the first of them behind `comma`."""
            if place == len(names):
                return '"}"'
            pair = f"{json.dumps(f'{comma}{names[place]}:')} {self._value(named[names[place]])}"
            ways = [f"{pair} {rest_of(place + 1, ',')}"]
            if names[place] not in needed:
                ways.append(rest_of(place + 1, comma))
            return " | ".join(ways)

        known: dict[tuple[int, str], str] = {}

        def rest_of(place: int, comma: str) -> str:
            if (place, comma) not in known:
                known[place, comma] = self.lark.rule(rest(place, comma))
            return known[place, comma]

        return self.lark.rule(f'"{{" {rest_of(0, "")}')

    def _free_object(self, schema: Mapping[str, Any]) -> str:
        if not schemas.allows_others(schema):
            return '"{" "}"'
        others = schema.get("additionalProperties", True)
        pair = f'{self.lark.terminal(FREE_KEY)} ":" {self._value(others)}'
        return self.lark.rule(f'"{{" "}}" | "{{" {pair} ("," {pair})* "}}"')
