"""What is meant by a value that a caller gives for a field: taken by its meaning, not by the name of its type.

`by_meaning` makes a dataclass read its values by the types of its fields:

    int, float    numbers of Python, numpy and torch, and text that is one; 3.0 is 3. True is no number
    bool          also 0 and 1, and true and false as text
    str           also torch.bfloat16 and torch.device("cpu"); of several values, with commas between
    Path          text, bytes and path objects; "~" is the home
    tuple         of one value or any number of them; "" is none
    Mapping       of whole numbers to numbers; the keys may be text, as in JSON. Where text is meant: its JSON
    a protocol    an object that has its methods, as it is
    None          the default, where it is not a value itself

Anything else, and a name that is no field, is an OptionError.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ..errors import OptionError, brief, listed
from .placement.placement import nearest

T = TypeVar("T", bound=type)

AS_IS = (int, float, bool, str)  # of a field of this type alone
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
WANTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
# What other engines call it.
ALIASES = {
    "max_tokens": "max_new_tokens", "n_predict": "max_new_tokens", "max_length": "max_new_tokens",
    "max_model_len": "max_context", "n_ctx": "max_context", "ctx_size": "max_context", "context_length": "max_context",
    "n_threads": "threads", "num_threads": "threads", "max_num_seqs": "max_sequences", "random_seed": "seed",
    "stop_strings": "stop", "stop_sequences": "stop", "repeat_penalty": "repetition_penalty", "temp": "temperature",
    "quantization": "expert_format", "torch_dtype": "dtype", "download_dir": "cache_dir", "device_map": "device",
    "local_files_only": "offline", "num_experts_per_tok": "experts_per_token",
}  # fmt: skip


def by_meaning(kind: T) -> T:
    """Makes a dataclass whose fields are given by name read their values by their meaning, before it checks them."""
    plain = kind.__init__  # type: ignore[misc]  # of the class itself, not of who inherits it

    @functools.wraps(plain)
    def init(self: object, *unnamed: object, **given: Any) -> None:
        if unnamed:
            raise OptionError(f"{kind.__name__} takes its values by name: {brief(unnamed[0])} has none")
        hints, defaults = _hints(kind), _defaults(kind)
        if unknown := next((name for name in given if name not in hints), None):
            raise OptionError(_no_such(unknown, list(hints)))
        for name, value in given.items():
            left_out = value is None and NoneType not in _kinds(hints[name])
            given[name] = defaults[name] if left_out else read(name, value, hints[name])
        plain(self, **given)

    kind.__init__ = init  # type: ignore[misc]
    return kind


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


@functools.cache
def _defaults(kind: Any) -> dict[str, Any]:
    return {f.name: f.default for f in fields(kind)}


def _no_such(name: str, known: list[str]) -> str:
    meant = ALIASES.get(name)
    hint = f" (did you mean {meant}?)" if meant in known else nearest(name, known)
    return f"there is no option {brief(name)}{hint}; there are {listed(known, 8)}"


def read(name: str, value: Any, hint: Any) -> Any:
    """The value of a field of this type that is meant by `value`; raises OptionError."""
    kinds = _kinds(hint)
    if (value is None and NoneType in kinds) or (type(value) in AS_IS and kinds == (type(value),)):
        return value
    if get_origin(hint) is tuple:
        return _many(name, value, get_args(hint)[0])
    kinds = tuple(one for one in kinds if one is not NoneType)
    if len(kinds) > 1 and isinstance(value, Mapping) and any(get_origin(one) is Mapping for one in kinds):
        return _as_json(name, value)
    if get_origin(kinds[0]) is Mapping:
        return _numbers_by_id(name, value)
    if any(getattr(one, "_is_protocol", False) and isinstance(value, one) for one in kinds):
        return value
    if isinstance(value, str) and str in kinds:
        return str(value)
    for one in sorted((one for one in kinds if one in READERS), key=lambda kind: kind is str):
        try:
            return READERS[one](value)
        except (ValueError, TypeError, OverflowError, RuntimeError, AttributeError):
            continue
    wanted = " or ".join(WANTED.get(one) or f"a {one.__name__}" for one in kinds)
    raise OptionError(f"{name} is {brief(value)}; it must be {wanted}")


@functools.cache
def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types that a field's type is made of."""
    return (hint,) if get_origin(hint) is tuple else get_args(hint) or (hint,)


def _many(name: str, value: Any, kind: Any) -> tuple[Any, ...]:
    """A tuple of one value or several."""
    if isinstance(value, str) and not value:
        return ()
    several = items(value)
    return tuple(read(name, one, kind) for one in ([value] if several is None else several))


def _numbers_by_id(name: str, value: Any) -> dict[int, float]:
    """A mapping of whole numbers to numbers."""
    try:
        return {whole(key): _number(one) for key, one in dict(value).items()}
    except (ValueError, TypeError, OverflowError):
        raise OptionError(f"{name} is {brief(value)}; it must map token ids to numbers") from None


def _as_json(name: str, value: Any) -> str:
    """The JSON text of a mapping."""
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        raise OptionError(f"{name} is {brief(value)}, which is no JSON: give text, or what JSON can say") from None


def items(value: Any) -> list[Any] | None:
    """What a list, tuple, range, array or tensor holds; None for what is one value."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    is_one = isinstance(value, str | bytes | bytearray | os.PathLike | Mapping) or not isinstance(value, Iterable)
    return None if is_one else list(value)


def plain(value: Any) -> Any:
    """A number of numpy or torch as one of Python; other values as they are."""
    return value.item() if hasattr(value, "item") and tuple(getattr(value, "shape", (0,))) in ((), (1,)) else value


def whole(value: Any) -> int:
    """A whole number; ValueError or TypeError for what is none."""
    value = plain(value)
    if isinstance(value, bool):
        raise TypeError("true or false")
    if hasattr(value, "__index__"):
        return value.__index__()  # type: ignore[no-any-return]
    if isinstance(value, str) and value.strip().lstrip("+-").isdigit():
        return int(value)
    number = _number(value)
    if not number.is_integer():
        raise ValueError("not whole")
    return int(number)


def _number(value: Any) -> float:
    value = plain(value)
    if isinstance(value, bool | bytes | bytearray):
        raise TypeError("no number")
    return float(value)


def _flag(value: Any) -> bool:
    value = plain(value)
    text = str(value).strip().lower() if isinstance(value, str | int) else ""
    if text not in (*TRUE, *FALSE):
        raise ValueError("neither true nor false")
    return text in TRUE


def _words(value: Any) -> str:
    if type(value).__module__ == "torch" and type(value).__name__ in ("dtype", "device"):
        return str(value).removeprefix("torch.")
    several = items(value)
    if not several or not all(isinstance(plain(one), str | int | float) for one in several):
        raise TypeError("no text")
    return ",".join(str(plain(one)) for one in several)


def _path(value: Any) -> Path:
    return Path(os.fsdecode(value)).expanduser()


READERS: dict[Any, Callable[[Any], Any]] = {int: whole, float: _number, bool: _flag, str: _words, Path: _path}
