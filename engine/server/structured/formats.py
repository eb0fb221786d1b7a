"""The form that an answer is to have, by the names that OpenAI's API, vLLM and llama.cpp have for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from ....errors import OptionError
from ...generation.grammars.grammar import Grammar
from ..wire.errors import ApiError, bad_request
from ..wire.fields import Sampled

KINDS: dict[str, Callable[[Any], Grammar]] = {
    "json": Grammar.of_schema,
    "regex": Grammar.of_regex,
    "choice": Grammar.of_choices,
    "grammar": Grammar.of_lark,
}
ANY_OBJECT = {"type": "object"}
T = TypeVar("T")


def schema_of(format: Mapping[str, Any] | None) -> Mapping[str, Any] | bool | None:
    """The schema that a format asks for; None for text. Raises ApiError."""
    kind = (format or {}).get("type", "text")
    if format is None or kind == "text":
        return None
    if kind == "json_object":
        return format.get("schema") or ANY_OBJECT
    if kind == "json_schema":
        inner = format.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, Mapping) else format.get("schema")
        if not isinstance(schema, (Mapping, bool)):
            raise bad_request("response_format has no schema: give json_schema.schema", "response_format")
        return schema
    raise bad_request(
        f"response_format {kind!r} is not supported: give text, json_object or json_schema", "response_format"
    )


def wish_of(asked: Sampled, format: Mapping[str, Any] | None = None) -> Callable[[], Grammar] | None:
    """What makes the grammar that a request asks for, in whatever way; None: it asks for none. Raises ApiError for
    several, or for a kind that there is none of; so does what is returned for a grammar that is none."""
    given = {f"guided_{kind}": (kind, getattr(asked, f"guided_{kind}")) for kind in KINDS}
    given |= {"grammar": ("grammar", asked.grammar), "json_schema": ("json", asked.json_schema)}
    given |= {f"structured_outputs.{k}": (k, v) for k, v in (asked.structured_outputs or {}).items()}
    given["response_format"] = ("json", schema_of(format))
    wanted = {name: one for name, one in given.items() if one[1] is not None}
    if len(wanted) > 1:
        raise bad_request(f"{' and '.join(wanted)} all say what form the answer has: give one of them")
    for name, (kind, value) in wanted.items():
        if kind not in KINDS:
            raise bad_request(f"{name} is not supported: give {', '.join(KINDS)}", name)
        return partial(about, name, partial(KINDS[kind], value))
    return None


def about(name: str, make: Callable[[], T]) -> T:
    """What is made of a field; raises ApiError that names it."""
    try:
        return make()
    except (OptionError, TypeError) as error:
        raise ApiError(400, f"{name}: {error}", param=name) from None
