"""What grammars ask of JSON schemas: references, alternatives, and what is said of a text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from .....errors import OptionError

Schema = Any  # an object, or true or false
_REMARKS = {"title", "description", "default", "examples", "deprecated", "$comment", "readOnly", "writeOnly"}
_ROOT = "tool"  # where the whole schema stands among the definitions of a part of it
_DEEP = 8  # references that are followed


def is_open(schema: Schema) -> bool:
    """Whether everything is allowed."""
    return schema is True or (isinstance(schema, Mapping) and not {*schema} - _REMARKS)


def part(schema: Schema, whole: Schema) -> Schema:
    """A part of a schema as one of its own: what it refers to goes with it."""
    if not _has_reference(schema):
        return schema
    return {**_moved(schema), "$defs": {_ROOT: _moved(whole)}}


def _has_reference(schema: Any) -> bool:
    if isinstance(schema, Mapping):
        return "$ref" in schema or any(map(_has_reference, schema.values()))
    return isinstance(schema, list) and any(map(_has_reference, schema))


def _moved(schema: Any) -> Any:
    """The same with references to where the whole stands now."""
    if isinstance(schema, list):
        return [_moved(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {key: _moved(value) for key, value in schema.items()}
    name = found.get("$ref")
    if isinstance(name, str) and name.startswith("#"):
        found["$ref"] = f"#/$defs/{_ROOT}{name[1:]}"
    return found


def resolved(schema: Schema, whole: Schema) -> Schema:
    """What a reference refers to; a schema that is none as it is. Raises OptionError for one that refers to nothing."""
    for _ in range(_DEEP):
        name = schema.get("$ref") if isinstance(schema, Mapping) else None
        if name is None:
            return schema
        found = whole
        for step in str(name).lstrip("#").strip("/").split("/"):
            found = found.get(step) if step and isinstance(found, Mapping) else (found if not step else None)
        if found is None:
            raise OptionError(f"the schema of a tool refers to {name}, which it does not have")
        schema = found
    raise OptionError(f"the schema of a tool refers to itself: {json.dumps(schema)[:60]}")


def alternatives(schema: Schema, whole: Schema) -> Iterator[Schema]:
    """The schemas of which one is to hold: of anyOf, oneOf, and of several types."""
    schema = resolved(schema, whole)
    if not isinstance(schema, Mapping):
        yield schema
        return
    parts = schema.get("anyOf") or schema.get("oneOf")
    together = schema.get("allOf")
    if isinstance(together, list) and len(together) == 1 and "type" not in schema:
        parts = together
    if isinstance(parts, list) and parts:
        for one in parts:
            yield from alternatives(one, whole)
    elif isinstance(schema.get("type"), list):
        for kind in schema["type"]:
            yield {**schema, "type": kind}
    else:
        yield schema


def literals(schema: Schema) -> list[Any] | None:
    """The values that are allowed, where they are listed."""
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    return values if isinstance(values, list) else None


def text_limits(schema: Mapping[str, Any]) -> list[str]:
    """Regular expressions, as they stand between slashes, that a text has to match as a whole."""
    least, most, wanted = schema.get("minLength"), schema.get("maxLength"), schema.get("pattern")
    found = []
    if least or most is not None:
        found.append(f"(?s:.{{{least or 0},{'' if most is None else most}}})")
    if isinstance(wanted, str):
        inner = wanted.removeprefix("^").removesuffix("$")
        begin, end = ("" if wanted.startswith("^") else "(?s:.*)"), ("" if wanted.endswith("$") else "(?s:.*)")
        found.append(f"{begin}({inner.replace('/', chr(92) + '/') if chr(92) + '/' not in inner else inner}){end}")
    return found


def names_and_needed(schema: Schema) -> tuple[dict[str, Schema], set[str]]:
    """The properties of an object, and which of them it must have."""
    found = schema.get("properties") if isinstance(schema, Mapping) else None
    needed = schema.get("required") if isinstance(schema, Mapping) else None
    named = dict(found) if isinstance(found, Mapping) else {}
    return named, {one for one in needed or () if one in named} if isinstance(needed, list) else set()


def allows_others(schema: Schema) -> bool:
    """Whether an object may have properties that are not named: asked where none is named."""
    return not (isinstance(schema, Mapping) and schema.get("additionalProperties") is False)
