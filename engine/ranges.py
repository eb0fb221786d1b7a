"""Which values an option may have: one of some words, a number within a range, text that is not empty."""

from __future__ import annotations

import math

from ..errors import OptionError, brief, listed
from ..kernels import limits
from .placement.placement import nearest

MOST = 14  # words of a list in a message


def choice(name: str, value: object, choices: list[str]) -> None:
    """Raises OptionError for a value that is none of these."""
    if value not in choices:
        hint = nearest(str(value).lower(), choices)
        raise OptionError(f"{name} is {brief(value)}{hint}; choose one of {listed(choices, MOST)}")


def between(name: str, value: float | None, least: float, most: float = math.inf) -> None:
    """Raises OptionError for a number outside of a range; None, where a field may be that, is inside."""
    if value is not None and not (least <= value <= most and value < math.inf):
        kind = "a whole number" if isinstance(value, int) else "a number"
        limit = f"at least {least:g}" + (f" and at most {most:g}" if most < math.inf else "")
        raise OptionError(f"{name} is {brief(value)}; it must be {kind} of {limit}")


def threads(count: int | None) -> None:
    """Raises OptionError for more threads than can be started."""
    between("threads", count, 1)
    most, reason = limits.most_threads() if count is not None and count > 1 else (1, "")
    if count is not None and count > most:
        raise OptionError(
            f"threads is {brief(count)}, and at most {most} can be used here ({reason}): leave it out for one per core"
        )


def count_or(name: str, value: int | str, minimum: int, words: list[str]) -> None:
    """Raises OptionError for what is neither a whole number of at least `minimum` nor one of some words."""
    is_number = isinstance(value, int) or (value.isascii() and value.isdigit())
    if value not in words and not (is_number and int(value) >= minimum):
        raise OptionError(
            f"{name} is {brief(value)}; give a whole number of at least {minimum}, or {' or '.join(words)}"
        )


def strings(name: str, many: tuple[str, ...]) -> None:
    """Raises OptionError for an empty string among others."""
    if "" in many:
        raise OptionError(f"{name} is {brief(many)}; give strings that are not empty")
