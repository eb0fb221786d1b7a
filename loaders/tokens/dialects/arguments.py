"""Values that stand between marks as JSON, by what the tool's schema says of them.

A parameter that is text stays text, whatever it looks like, and its value goes out as it comes. Any other value is
waited for: it is JSON where it can be read as what the schema allows, and text where it cannot.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from .json_pieces import LITERALS, escaped

ANY = frozenset({"any"})
TEXT = frozenset({"string"})
_DEEP = 4  # references that are followed


class Value(Protocol):
    """One value that grows."""

    def add(self, piece: str) -> None:
        """More of it."""

    def end(self, cut: bool) -> None:
        """It is complete; cut: or will not be."""


class TextValue:
    """A value that is text."""

    def __init__(self, sink: Callable[[str], None]) -> None:
        self.sink = sink
        sink('"')

    def add(self, piece: str) -> None:
        """More of it."""
        self.sink(escaped(piece))

    def end(self, cut: bool) -> None:
        """It is complete; cut: or will not be."""
        if not cut:
            self.sink('"')


class OtherValue:
    """A value that may be something else. kinds: what the schema allows, by JSON schema's names."""

    def __init__(self, sink: Callable[[str], None], kinds: frozenset[str]) -> None:
        self.sink, self.kinds = sink, kinds
        self.pieces: list[str] = []

    def add(self, piece: str) -> None:
        """More of it."""
        self.pieces.append(piece)

    def end(self, cut: bool) -> None:
        """It is complete; cut: or will not be."""
        text = "".join(self.pieces)
        if cut:
            self.sink(f'"{escaped(text)}' if self.kinds & {"string", "any"} else text)
        else:
            found = as_json(text, self.kinds)
            self.sink(f'"{escaped(text)}"' if found is None else found)


def value_of(kinds: frozenset[str], sink: Callable[[str], None]) -> Value:
    """A value that the schema allows to be of these kinds."""
    return TextValue(sink) if kinds == TEXT else OtherValue(sink, kinds)


def as_json(text: str, kinds: frozenset[str]) -> str | None:
    """A value's text as JSON, None where it is to be text."""
    stripped = text.strip()
    stripped = LITERALS.get(stripped, stripped)
    try:
        value = json.loads(stripped, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if "any" not in kinds and "string" in kinds and not _kinds_of(value) & kinds:
        return None
    return stripped


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _kinds_of(value: Any) -> set[str]:
    """What JSON schema calls a value."""
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    names = {float: "number", str: "string", dict: "object", list: "array"}
    return {names.get(type(value), "null")}


class Tools:
    """The tools that may be called, by name, and what their parameters are."""

    def __init__(self, tools: list[dict[str, Any]] | None) -> None:
        functions = [tool["function"] for tool in tools or []]
        self.schemas: dict[str, Any] = {function["name"]: function.get("parameters") for function in functions}
        self.longest = max(map(len, self.schemas), default=0)

    def __contains__(self, name: str) -> bool:
        return name in self.schemas

    def __iter__(self) -> Iterator[str]:
        return iter(self.schemas)

    def __bool__(self) -> bool:
        return bool(self.schemas)

    def parameters(self, tool: str) -> Mapping[str, Any]:
        """The schemas of a tool's parameters."""
        schema = self.schemas.get(tool)
        found = schema.get("properties") if isinstance(schema, Mapping) else None
        return found if isinstance(found, Mapping) else {}

    def kinds(self, tool: str, parameter: str) -> frozenset[str]:
        """What a parameter may be; ANY where the schema does not say."""
        whole = self.schemas.get(tool)
        found = _kinds(self.parameters(tool).get(parameter), whole, _DEEP)
        return frozenset(found) or ANY

    def with_parameters(self, names: set[str]) -> str | None:
        """The only tool that has all these parameters, and needs no others; None if there are several, or none."""
        fitting = [tool for tool in self.schemas if self._needs(tool) <= names <= {*self.parameters(tool)}]
        return fitting[0] if len(fitting) == 1 else None

    def _needs(self, tool: str) -> set[str]:
        schema = self.schemas[tool]
        needed = schema.get("required") if isinstance(schema, Mapping) else None
        return {one for one in needed if isinstance(one, str)} if isinstance(needed, list) else set()


def _kinds(schema: Any, whole: Any, deep: int) -> set[str]:
    """The kinds that a schema names, of alternatives all; none where one of them says nothing."""
    if not isinstance(schema, Mapping) or deep == 0:
        return set()
    kind = schema.get("type")
    if isinstance(kind, str):
        return {kind}
    if isinstance(kind, list):
        return {one for one in kind if isinstance(one, str)}
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, list) and values:
        return set().union(*map(_kinds_of, values))
    for word in ("anyOf", "oneOf", "allOf"):
        if isinstance(parts := schema.get(word), list) and parts:
            each = [_kinds(part, whole, deep - 1) for part in parts]
            return set().union(*each) if all(each) or word == "allOf" else set()
    return _kinds(_referred(schema.get("$ref"), whole), whole, deep - 1)


def _referred(name: Any, whole: Any) -> Any:
    """What "#/$defs/NAME" is."""
    if not isinstance(name, str) or not name.startswith("#/"):
        return None
    for part in name[2:].split("/"):
        whole = whole.get(part) if isinstance(whole, Mapping) else None
    return whole
