"""Calls of tools: where they begin and end, and those that are written as JSON.

Until a call has its name it may turn out to be none; then what was read is given back, and becomes text. A mark that
ends a call counts within a text of its arguments only if another mark, or nothing, follows: a model may well write
`</tool_call>` into a file.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable

from .arguments import Tools
from .dialect import Dialect, Texts
from .events import Output
from .json_pieces import JsonPieces
from .lexer import Marks, Source, Wait
from .tagged import Braces, TaggedCall

log = logging.getLogger("headrace")
HEAD = 200  # characters that a name, an id and what stands around them take at most
ARGUMENTS = ("arguments", "parameters", "args")
PARTS = ("name", "id", *ARGUMENTS)
_ID = re.compile(r"[A-Za-z0-9_.:-]+")
_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_COUNTER = re.compile(r"(?:call_?)?\d+")
_FENCES = Marks(["```json", "```"])
_SPARE = '}])"`,;'  # signs that models put once too often behind a call


class Calls:
    """Reads the calls of one answer."""

    def __init__(self, source: Source, out: Output, dialect: Dialect, tools: Tools) -> None:
        self.source, self.out, self.dialect, self.tools = source, out, dialect, tools
        self.has_refused = False
        opens, closes = dialect.section or ((), ())
        self.section_open, self.section_close = self._spelled(opens), self._spelled(closes)
        self.call_open, self.call_close = self._spelled(dialect.call[0]), self._spelled(dialect.call[1])
        bare = []
        if dialect.bare and dialect.tags:
            last = (dialect.tags.key, *dialect.tags.end)
            bare = [f"{name}{between}{mark}" for name in tools for between in ("\n", "") for mark in last]
        self.bare = self._spelled(bare)
        self.openers = Marks([*self.section_open, *self.call_open, *self.bare] if tools else [])
        ends = self._spelled(dialect.tags.end) if dialect.tags else ()
        self.closers = Marks([*self.section_close, *self.call_close, *ends] if tools else [])
        self.stops = Marks([*self.section_close, *self.call_close, *self.section_open, *self.call_open])
        self._within = Marks([*self.call_open, *self.section_close])
        self._closing = Marks([*self.call_close, *_FENCES.texts])
        self._heads = Marks([*self._spelled(dialect.separators), "{"])
        self._tags = TaggedCall(source, out, dialect.tags, tools, self.stops, self.closers) if dialect.tags else None
        self._braces = Braces(source, out, tools, self.stops, self.closers)

    def _spelled(self, texts: Texts | list[str]) -> tuple[str, ...]:
        return tuple(map(self.source.vocabulary.spell, texts))

    def read(self, mark: str) -> Wait[bool]:
        """Reads the calls that `mark`, which was just read, begins. False if they are none: nothing is read then."""
        start = self.source.pin()
        if mark in self.section_open:
            found = yield from self._section()
        else:
            self.source.at -= len(mark) if mark in self.bare else 0
            found = yield from self._one()
        if not found:
            self.source.unpin(start)
            if not self.has_refused:
                log.info(
                    "what looks like a call is none of a tool that was given: it stays text (%s)", self.dialect.name
                )
            self.has_refused = True
        return found

    def _section(self) -> Wait[bool]:
        """Calls up to the section's end, which may be missing."""
        count = 0
        while True:
            start = self.source.pin()
            yield from self.source.spaces()
            mark = yield from self.source.next_of(self._within)
            if mark in self.call_open or (mark is None and (yield from self._is_object())):
                if (yield from self._one()):
                    count += 1
                    continue
                mark = None
            if mark is not None:
                self.source.unpin()
                return count > 0
            self.source.unpin(start)
            return count > 0

    def _is_object(self) -> Wait[bool]:
        """Whether a call as JSON follows, in a dialect that writes none."""
        return self._tags is not None and (yield from self.source.character()) == "{"

    def _one(self) -> Wait[bool]:
        """One call, of which the first mark was read."""
        yield from self.source.spaces()
        first = yield from self.source.character()
        if self.dialect.style == "braces":
            found = yield from self._braces.read()
            if found:
                yield from self._behind()
            return found
        if first and first in "[{":
            return (yield from self._objects(first))
        return (yield from (self._tags.read() if self._tags else self._named()))

    def start(self, name: str, id: str | None = None) -> None:
        """A call that is one begins: what was read is never given back."""
        self.source.pins = 0
        given = id if self.dialect.ids != "nine" or len(id or "") == 9 else None
        self.out.start_call(name, given)

    # ---- name, then arguments

    def _named(self) -> Wait[bool]:
        """NAME, a separator, and JSON; or `function`, a separator, NAME in a line, and JSON within a fence."""
        head = (yield from self.source.short_until(self._heads, HEAD)) if self.dialect.separators else None
        if head is None:
            return False
        text, mark = head[0].strip(), head[1]
        self.source.at -= len(mark) if mark == "{" else 0
        if text == "function" and text not in self.tools:
            line = yield from self.source.short_until(Marks(["\n"]), HEAD)
            text = line[0].strip() if line else ""
        name = self.tool_of(text)
        if name is None and _COUNTER.fullmatch(text):
            name = yield from self.source.ahead(self._by_arguments())
        if name is None:
            return False
        self.start(name, text if self.dialect.ids == "model" else None)
        yield from self.source.spaces()
        yield from self.source.next_of(_FENCES)
        yield from self.arguments(self._is_stop)
        self.out.end_call()
        yield from self._behind()
        return True

    def tool_of(self, text: str) -> str | None:
        """The tool that a header names: NAME, functions.NAME, functions.NAME:3, and the like."""
        for name in (text, re.sub(r"[:.]?\d+$", "", text)):
            for prefix in ("", "functions.", "function.", "functions:", "functions"):
                if name.startswith(prefix) and name[len(prefix) :] in self.tools:
                    return name[len(prefix) :]
        return None

    def _by_arguments(self) -> Wait[str | None]:
        """The only tool that goes with the arguments: Kimi K2 gives a number instead of a name at times."""
        found: list[str] = []
        yield from self._json(JsonPieces(found.append), self._is_stop)
        try:
            value = json.loads(self.source.vocabulary.literal("".join(found)))
        except (ValueError, RecursionError):
            return None
        return self.tools.with_parameters({*value}) if isinstance(value, dict) else None

    def arguments(self, is_stop: Callable[[str], Wait[bool]] | None, stops: Marks | None = None) -> Wait[None]:
        """JSON arguments as they come, completed at their end. is_stop: asked of a mark within a text."""
        literal = self.source.vocabulary.literal
        pieces = JsonPieces(lambda text: self.out.arguments(literal(text)))
        yield from self._json(pieces, is_stop, stops)
        self._close(pieces)

    def _close(self, pieces: JsonPieces) -> None:
        if self.source.is_cut and self.source.ended and self.source.at >= len(self.source.text):
            pieces.cut()
        else:
            pieces.close()

    def _json(
        self, pieces: JsonPieces, is_stop: Callable[[str], Wait[bool]] | None, stops: Marks | None = None
    ) -> Wait[None]:
        """Reads a JSON value, up to its end or a mark that stops it."""
        source, marks = self.source, stops or self.stops
        while True:
            found, first = marks.look(source.text, source.at, source.ended)
            source.at += pieces.feed(source.text[source.at : first])
            if pieces.is_done:
                return
            if found and pieces.in_text and is_stop and not (yield from is_stop(found)):
                pieces.feed(found)
                source.at += len(found)
            elif found or source.ended:
                return
            else:
                yield

    def _is_stop(self, mark: str) -> Wait[bool]:
        """Whether a mark that follows within a text ends the call: another one, or nothing, is behind it."""
        if mark not in self.closers.texts:
            return False
        start = self.source.pin()
        self.source.at += len(mark)
        yield from self.source.spaces()
        ends = yield from self.source.is_at_end()
        found = None if ends else (yield from self.source.next_of(self.stops))
        self.source.unpin(start)
        return ends or found is not None

    def _behind(self) -> Wait[None]:
        """What closes a call; signs that stand there once too often are text."""
        source, spare = self.source, ""
        if not self.call_close:
            return
        start = source.pin()
        while True:
            yield from source.spaces()
            found = yield from source.next_of(self._closing)
            if found in self.call_close:
                source.unpin()
                self.out.text(spare)
                return
            sign = yield from source.character()
            if found is None and (not sign or sign not in _SPARE):
                source.unpin(start)
                return
            if found is None:
                spare, source.at = spare + sign, source.at + 1

    # ---- an object with name and arguments, or a list of them

    def _objects(self, first: str) -> Wait[bool]:
        source, count = self.source, 0
        source.at += first == "["
        while True:
            start = source.pin()
            yield from source.spaces()
            sign = yield from source.character()
            if sign == "{" and (yield from self._object()):
                count += 1
            elif first == "[" and sign in (",", "]"):
                source.at += 1
                source.unpin()
                if sign == "]":
                    break
                continue
            else:
                source.unpin(start)
                break
            if first == "{":
                break
        if count:
            yield from self._behind()
        return count > 0

    def _object(self) -> Wait[bool]:
        """One call. Its name may come behind its arguments, and both may stand in an object `function`."""
        source, known, deep, has_begun = self.source, dict[str, str](), 0, False
        others: list[str] = []
        while True:
            sign = yield from source.character()
            if not sign or sign not in "{},":
                key = yield from self._key()
                if key is None:
                    break
                if key in ARGUMENTS and not has_begun and "name" in known:
                    if known["name"] not in self.tools:
                        return False
                    self.start(known["name"], known.get("id"))
                    has_begun = True
                    others += yield from self._encoded()
                elif key != "function" or (yield from source.character()) != "{":
                    value = yield from self._value()
                    is_late = has_begun or key in known
                    if key in PARTS and not is_late:
                        known[key] = value
                    elif not (key == "id" and _ID.fullmatch(value)) and (key, value) != ("type", "function"):
                        others.append(f'"{key}": {value}')
            else:
                source.at += 1
                deep += {"{": 1, "}": -1}.get(sign, 0)
                if deep == 0:
                    break
            yield from source.spaces()
        if not has_begun and (deep or known.get("name", "") not in self.tools):
            return False
        if not has_begun:
            self.start(known["name"], known.get("id"))
            others += self._whole(next((known[one] for one in ARGUMENTS if one in known), ""))
        self.out.end_call()
        self.out.text(" ".join(others))
        return True

    def _whole(self, text: str) -> list[str]:
        """Gives arguments that are there as a whole; returns what is behind them."""
        pieces = JsonPieces(self.out.arguments)
        rest = text[pieces.feed(text) :].strip()
        pieces.close()
        return [rest] if rest else []

    def _key(self) -> Wait[str | None]:
        """A key and its colon; None if there is none."""
        start = self.source.pin()
        key = yield from self._text()
        yield from self.source.spaces()
        if key is None or (yield from self.source.character()) != ":":
            self.source.unpin(start)
            return None
        self.source.unpin()
        self.source.at += 1
        yield from self.source.spaces()
        return key

    def _text(self) -> Wait[str | None]:
        """A JSON text, read to its end; None if there is none."""
        source = self.source
        while (yield from source.character()) == '"':
            if match := _TEXT.match(source.text, source.at):
                source.at = match.end()
                try:
                    return str(json.loads(source.vocabulary.literal(match.group()), strict=False))
                except (ValueError, RecursionError):
                    return source.vocabulary.literal(match.group()[1:-1])
            if source.ended:
                break
            yield
        return None

    def _value(self) -> Wait[str]:
        """The text of a value: what it says if it is text, else its JSON."""
        text = yield from self._text()
        if text is not None:
            return text
        found: list[str] = []
        yield from self._json(JsonPieces(found.append), self._is_stop)
        return self.source.vocabulary.literal("".join(found))

    def _encoded(self) -> Wait[list[str]]:
        """Arguments; some models write them as a text that holds JSON. Returns what that text has behind them."""
        text = yield from self._text()
        if text is not None:
            return self._whole(text)
        yield from self.arguments(self._is_stop)
        return []
