"""How much a chat template may make: characters and items of one rendering, asked for before they are made.

A list that holds the same list twice, and that another list twice, has few bytes and no end as text, and comparing two
of them takes as long. So what counts of a value is its weight: what stands in it, as often as it stands there.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, ItemsView, Iterable, KeysView, Mapping, ValuesView
from itertools import islice
from typing import Any, NamedTuple

from jinja2 import Environment, pass_environment
from jinja2.exceptions import SecurityError
from jinja2.filters import make_attrgetter

MOST_TEXT = 1 << 26  # characters of one text: ten times the longest context of any model
MOST_ITEMS = 1 << 20  # of one list
MOST_SORTED = 1 << 17  # of one that is put in order, which nothing can stop
MOST_MADE = 1 << 31  # characters and items that one rendering makes in all
MOST_NUMBER = 1_000_000  # a width, a count: more has no use in a prompt
MOST_BITS = 4096  # of a whole number
LONGEST_NUMBER = 1000  # characters that are read as a number
MOST_KNOWN = 1 << 20  # items of lists whose weight is remembered
ESCAPED, QUOTED = 5, 9  # characters that one becomes in HTML, in an address
_DIGITS = re.compile(r"\d+")
_VIEWS = (KeysView, ValuesView, ItemsView)


class Weight(NamedTuple):
    """Of a value as it would be written: characters and items, items alone, lists in lists."""

    size: int
    items: int = 1
    depth: int = 0


class Made(threading.local):
    """What the rendering in this thread has made so far, and the weights of what it made them of. Nothing in a template
    changes a list, so that a weight stays."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.total = self.known = 0
        self.weights: dict[int, tuple[Any, Weight]] = {}

    def add(self, count: int, most: int | None = None) -> None:
        self.total += count
        most = MOST_TEXT if most is None else most
        if count > most or self.total > MOST_MADE:
            raise SecurityError(f"it makes texts or lists of more than {min(most, MOST_MADE):,} characters or items")

    def keep(self, value: Any, weight: Weight, count: int) -> None:
        if self.known + count > MOST_KNOWN:
            self.weights.clear()
            self.known = 0
        self.known += count
        self.weights[id(value)] = (value, weight)


made = Made()


def weigh(value: Any) -> Weight:
    """Raises SecurityError for a value that no text has room for."""
    if isinstance(value, (str, bytes)):
        return Weight(len(value))
    if not isinstance(value, (list, tuple, Mapping, *_VIEWS)):
        return Weight(1)
    known = made.weights.get(id(value))
    if known is not None and known[0] is value:
        return known[1]
    parts = [*value, *value.values()] if isinstance(value, Mapping) else list(value)
    size = items = 1
    depth = 0
    for part in parts:
        if isinstance(part, (str, int)):  # as most are
            size, items = size + (1 + len(part) if isinstance(part, str) else 2), items + 1
            continue
        inner = weigh(part)
        size, items, depth = size + 1 + inner.size, items + inner.items, max(depth, inner.depth)
        if size > MOST_TEXT:
            break
    if size > MOST_TEXT:
        made.add(size)
    weight = Weight(size, items, depth + 1)
    made.keep(value, weight, len(parts))
    return weight


def weighed(value: Any) -> Any:
    """A list that the template makes."""
    weigh(value)
    return value


def listed(values: Any, most: int) -> Any:
    """What a filter makes a list of."""
    if isinstance(values, (str, list, tuple)):
        made.add(len(values), most)
    if isinstance(values, (list, tuple)):
        return values
    found = list(islice(values, most + 1))
    made.add(len(found), most)
    return weighed(found)


def joined(parts: Iterable[str], between: str = "") -> str:
    """Texts as one, if it is not too long."""
    pieces: list[str] = []
    length = 0
    for part in parts:
        length += len(part) + len(between)
        if length > MOST_TEXT or len(pieces) > MOST_TEXT:
            made.add(MOST_TEXT + 1)
        pieces.append(part)
    made.add(length)
    return between.join(pieces)


@pass_environment
def join_filter(environment: Environment, values: Any, between: Any = "", attribute: Any = None) -> str:
    """jinja's filter `join`."""
    if attribute is not None:
        values = map(make_attrgetter(environment, attribute), values)
    return joined(map(str, values), str(between))


def join_method(between: str, values: Any) -> str:
    """`str.join`"""

    def texts() -> Iterable[str]:
        for one in values:
            if not isinstance(one, str):
                raise TypeError(f"str instance is needed, {type(one).__name__} found")
            yield one

    return joined(texts(), between)


# ---- operators


def _plus(left: Any, right: Any) -> None:
    if isinstance(left, str) and isinstance(right, str):
        made.add(len(left) + len(right))
    elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        made.add(len(left) + len(right), MOST_ITEMS)
        made.add(weigh(left).size + weigh(right).size)


def _times(left: Any, right: Any) -> None:
    for one, other in ((left, right), (right, left)):
        if isinstance(one, (str, list, tuple)) and isinstance(other, int):
            made.add(len(one) * max(0, other), MOST_TEXT if isinstance(one, str) else MOST_ITEMS)
            made.add(weigh(one).size * max(0, other))
    if isinstance(left, int) and isinstance(right, int):
        bits(left.bit_length() + right.bit_length())


def _power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        bits(left.bit_length() * abs(right))


def _divided(left: Any, right: Any) -> None:
    for one in (left, right):
        if isinstance(one, int):
            bits(one.bit_length())


def _modulo(left: Any, right: Any) -> None:
    if isinstance(left, str):
        format_of(left, *(right if isinstance(right, tuple) else (right,)))
    else:
        _divided(left, right)


OF_OPERATORS: dict[str, Callable[[Any, Any], None]] = {
    "+": _plus, "*": _times, "**": _power, "//": _divided, "%": _modulo,
}  # fmt: skip


def operator(name: str, left: Any, right: Any) -> None:
    if isinstance(left, (bytes, bytearray)) or isinstance(right, (bytes, bytearray)):
        raise SecurityError("it computes with bytes")
    OF_OPERATORS[name](left, right)


def bits(count: int) -> None:
    if count > MOST_BITS:
        raise SecurityError(f"it computes a number of more than {MOST_BITS} bits")


# ---- filters and methods


def format_of(pattern: Any, /, *values: Any, **named: Any) -> None:
    """`%`, and the filter `format`. A mapping's values may be written many times."""
    pattern = str(pattern)
    values = (*values, *named.values())
    wide = sum(map(width, _DIGITS.findall(pattern)))
    if "*" in pattern:
        numbers(*values)
        wide += sum(abs(one) for one in values if isinstance(one, int))
    times = pattern.count("%") if named or any(isinstance(one, Mapping) for one in values) else 1
    made.add(len(pattern) + wide + times * sum(weigh(one).size for one in values))


def width(digits: str) -> int:
    """A number within a format."""
    if len(digits) > len(str(MOST_NUMBER)) or int(digits) > MOST_NUMBER:
        raise SecurityError(f"it formats to a width of more than {MOST_NUMBER:,} characters")
    return int(digits)


def numbers(*values: Any) -> None:
    """Widths and counts."""
    for value in values:
        if isinstance(value, int) and abs(value) > MOST_NUMBER:
            raise SecurityError(f"it asks for {value:.3g} of something, {MOST_NUMBER:,} are the most")


def _padded(text: Any, *values: Any, **named: Any) -> None:
    numbers(*values, *named.values())
    made.add(max(0, 0, *(one for one in (*values, *named.values()) if isinstance(one, int))))


def _tabs(text: str, size: Any = 8, **named: Any) -> None:
    size = named.get("tabsize", size)
    numbers(size)
    made.add(len(text) + text.count("\t") * max(0, size))


def _replaced(text: Any, old: Any = "", new: Any = "", *rest: Any, **named: Any) -> None:
    text, old, new = str(text), str(old), str(new)
    made.add(len(text) + (text.count(old) if old else len(text) + 1) * len(new))


def _lines(text: Any, width: Any = 4, *flags: Any, **named: Any) -> None:
    """Each line gets that many characters in front, or that text."""
    numbers(width)
    wide = len(width) if isinstance(width, str) else width
    made.add(len(str(text)) + (str(text).count("\n") + 1) * wide)


def _wrapped(text: Any, width: Any = 79, long: Any = True, wrapstring: Any = None, *flags: Any, **named: Any) -> None:
    """Every character may become a line, behind a text."""
    numbers(width)
    made.add(len(str(text)) * (1 + len(str("\n" if wrapstring is None else wrapstring))))


def _translated(text: str, table: Any) -> None:
    values = table.values() if isinstance(table, Mapping) else table
    made.add(len(text) * max((len(one) for one in values if isinstance(one, str)), default=1))


def _split(text: str, separator: Any = None, *most: Any, **named: Any) -> None:
    separator = named.get("sep", separator)
    made.add(text.count(separator) if isinstance(separator, str) and separator else len(text) // 2, MOST_ITEMS)


def _splitlines(text: str, *ends: Any, **named: Any) -> None:
    made.add(sum(map(text.count, "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")), MOST_ITEMS)


def _escaped(value: Any, *rest: Any, **named: Any) -> None:
    made.add(ESCAPED * weigh(value).size)


def _quoted(value: Any, *rest: Any, **named: Any) -> None:
    made.add(QUOTED * weigh(value).size)


def _counted(values: Any, count: Any = 1, *rest: Any, **named: Any) -> None:
    numbers(count, *named.values())
    if isinstance(count, int):
        made.add(count)


def _parsed(value: Any, default: Any = 0, *base: Any, **named: Any) -> None:
    if isinstance(value, str) and len(value) > LONGEST_NUMBER:
        raise SecurityError(f"it reads a number of {len(value):,} characters")


def _summed(values: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, (int, float)):
        raise SecurityError("it sums what are no numbers")


OF_METHODS: dict[str, Callable[..., None]] = {
    "center": _padded, "ljust": _padded, "rjust": _padded, "zfill": _padded, "expandtabs": _tabs, "replace": _replaced,
    "translate": _translated, "split": _split, "rsplit": _split, "splitlines": _splitlines,
}  # fmt: skip
OF_FILTERS: dict[str, Callable[..., None]] = {
    "center": _padded, "indent": _lines, "wordwrap": _wrapped, "batch": _counted, "slice": _counted, "round": _counted,
    "truncate": _counted, "format": format_of, "replace": _replaced, "sum": _summed, "pprint": _counted, "e": _escaped,
    "escape": _escaped, "forceescape": _escaped, "xmlattr": _escaped, "urlencode": _quoted, "int": _parsed,
    "float": _parsed,
}  # fmt: skip
# Filters that keep all of what they are given, and how much that may be.
OF_LISTS = {
    "list": MOST_ITEMS, "unique": MOST_ITEMS, "batch": MOST_ITEMS, "slice": MOST_ITEMS, "sort": MOST_SORTED,
    "groupby": MOST_SORTED,
}  # fmt: skip
