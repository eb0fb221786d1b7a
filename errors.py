"""Errors meant for users: each names the thing, the value and the remedy. Our own mistakes are plain `assert`s.

Everything derives from `HeadraceError`, which the command line prints as one line, without a traceback.
This file imports nothing of ours, so that every layer may raise from it. `brief` and `listed` put values of any length
into a message, `first_words` an error of someone else's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

LONGEST = 300  # characters of a message on the command line
TAIL = 120  # of them for its end, which is the remedy


class HeadraceError(Exception):
    """Base of every error that a user can cause and mend. Its message is one line, whatever a file's name holds."""

    def __init__(self, message: str = "") -> None:
        super().__init__(visible(message))


class OptionError(HeadraceError, ValueError):
    """An option, parameter or environment variable has a value that cannot be used."""


class ConfigError(HeadraceError):
    """A model's config.json misses a key, or has a value that this engine does not support."""


class CheckpointError(HeadraceError):
    """A weight file is missing, damaged, or does not hold the tensors that the config promises."""


class TokenizerError(HeadraceError):
    """The tokenizer is missing, unreadable, or does not belong to the model."""


class HubError(HeadraceError):
    """A model could not be fetched from the hub."""


class SeveralModels(HubError):
    """A name that may mean several models. `choices`: how each is named, and its bytes."""

    def __init__(self, message: str, choices: Iterable[tuple[str, int]] = ()) -> None:
        super().__init__(message)
        self.choices = tuple(choices)


class MemoryNeeded(HeadraceError, MemoryError):
    """What was asked for does not fit into the memory that is free; raised before any of it is taken."""


class ContextOverflow(HeadraceError, ValueError):
    """Prompt plus new tokens do not fit into the context."""


class DeviceError(HeadraceError):
    """A GPU, its driver, the hand-off of experts between GPU and CPU, or a host of experts is missing or has failed."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the system, or a limit of this process, gave no memory: Python's, or torch's."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def visible(text: str) -> str:
    """Text on one line: line breaks, control characters and halves of characters as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def short(text: str, most: int = LONGEST) -> str:
    """A text without its middle, if it has more than `most` characters: the beginning says what, the end what to do."""
    tail = min(TAIL, most // 2)
    return text if len(text) <= most else f"{text[: most - tail - 5]} ... {text[-tail:]}"


def first_words(error: BaseException) -> str:
    """What an error of others says, on a line, with its type where the text alone would not be understood. Of text that
    begins with a place in a program ("at 12:5:", as Triton writes it) the last line, which says what is wrong there."""
    lines = [line.strip() for line in str(error).splitlines() if any(map(str.isalnum, line))]
    text = "" if not lines else lines[-1] if re.match(r"at \d+:\d+:", lines[0]) else lines[0]
    is_known = isinstance(error, HeadraceError) or type(error) is RuntimeError
    return text if text and is_known else ": ".join(filter(None, [type(error).__name__, text]))


def brief(value: object, most: int = 60) -> str:
    """A value as Python writes it, without its middle if it is long."""
    try:
        text = repr(_without_middle(value))
    except Exception:  # of someone else's type
        text = f"a {type(value).__name__}"
    return short(visible(text), most)


def _without_middle(value: object, depth: int = 3) -> object:
    """A value that takes no more than moments to write: a file may hold millions of numbers for one."""
    if isinstance(value, (str, bytes, list, tuple)) and len(value) > 2 * LONGEST:
        value = value[:LONGEST] + value[-LONGEST:]  # type: ignore[operator]
    if isinstance(value, dict) and depth:
        return {key: _without_middle(one, depth - 1) for key, one in list(value.items())[:LONGEST]}
    if type(value) is list and depth:
        return [_without_middle(one, depth - 1) for one in value]
    return value


def listed(names: Iterable[object], most: int = 5) -> str:
    """The first names of a list, and how many more there are: "a, b, c and 57 more"."""
    many = [str(name) for name in names]
    more = len(many) - most
    return ", ".join(many) if more <= 0 else f"{', '.join(many[:most])} and {more} more"
