"""A thing that a user can choose, said once: a field of a dataclass with its default, its help and how it is written.

The command line makes its options of these fields (`terminal/command_line/options.py`). This file knows no terminal.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import field, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..errors import OptionError

T = TypeVar("T")
_FILE = re.compile(r"[^\s{}]+\.(json|lark|gbnf|ebnf|txt|regex)")  # what can only be meant as a file's name

# The panels of --help. What a newcomer needs stands in the first one, with the command's own options.
COMMON = None
SAMPLING = "Sampling"
MODEL = "Model"
PLACEMENT = "Placement"
HOSTS = "Several hosts"
SPEED = "Performance"


class Option(NamedTuple):
    """panel: of --help. value: what stands for the value there, "" for a flag. names: of the option, the long one last.
    read: makes the field's value of the option's name and text, where the text is not the value."""

    panel: str | None
    value: str
    help: str
    names: tuple[str, ...]
    read: Callable[[str, str], object] | None


def option(
    default: T,
    panel: str | None,
    value: str,
    help: str,
    *,
    short: str | None = None,
    name: str | None = None,
    read: Callable[[str, str], object] | None = None,
) -> T:
    """A field that a user can choose; `name`: of the option, where it is not the field's."""
    names = tuple(one for one in (short, name) if one)
    return field(default=default, metadata={"option": Option(panel, value, help, names, read)})


def options_of(kind: type[Any]) -> dict[str, Option]:
    """The fields of a dataclass that a user can choose, in their order."""
    found: dict[str, Option] = {f.name: f.metadata["option"] for f in fields(kind) if "option" in f.metadata}
    for name, one in found.items():
        if not any(text.startswith("--") for text in one.names):
            found[name] = one._replace(names=(*one.names, f"--{name.replace('_', '-')}"))
    return found


def words(_: str, text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(word for word in text.split(",") if word)


def lower(_: str, text: str) -> str:
    """A format's name, which others write in capitals: Q4_K_M."""
    return text.lower()


def number_or_text(_: str, text: str | None) -> int | str | None:
    """A whole number as such."""
    return int(text) if text is not None and text.isascii() and text.isdigit() else text


def file_or_text(name: str, given: str | None) -> str | None:
    """What a file holds, or a text itself. Raises OptionError for a file that cannot be read."""
    if given is None:
        return None
    try:
        if not Path(given).is_file() and not _FILE.fullmatch(given):
            return given
        return Path(given).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise OptionError(f"{name}: {given} is no UTF-8 text ({error.reason}): give another file") from error
    except (OSError, ValueError) as error:
        if not _FILE.fullmatch(given):
            return given  # too long for a name, or with signs that none has
        reason = error.strerror if isinstance(error, OSError) else error
        raise OptionError(f"{name}: cannot read {given}: {reason}; give a file, or the text itself") from error
