"""Calls whose arguments stand between marks one by one, and Gemma's, whose JSON has keys without quotes."""

from __future__ import annotations

from collections.abc import Callable

from .arguments import ANY, TEXT, Tools, value_of
from .dialect import Tags
from .events import Output
from .json_pieces import JsonPieces, escaped
from .lexer import Marks, Source, Wait

KEY = 200  # characters of the longest key
QUOTE = '<|"|>'


class TaggedCall:
    """Reads one call behind its first mark. stops: marks that end it where its own end is missing, and closers those
    of them that can stand within a value and end it."""

    def __init__(self, source: Source, out: Output, tags: Tags, tools: Tools, stops: Marks, closers: Marks) -> None:
        self.source, self.out, self.tools, self.stops = source, out, tools, stops
        spell = source.vocabulary.spell
        self.key = spell(tags.key)
        self.key_types = {spell(mark): kind for mark, kind in tags.key_end}
        self.end, self.value_end = tuple(map(spell, tags.end)), tuple(map(spell, tags.value_end))
        self.before = tuple(map(spell, tags.name_before))
        self.name_end = Marks([*map(spell, tags.name_end), *self.before])
        self.key_end, self.value = Marks(self.key_types), Marks(map(spell, tags.value))
        self.parts = Marks([self.key, *self.end, *stops.texts])
        others = [self.key, *self.end, *closers.texts]
        line = "\n" if tags.value_end[0].startswith("\n") else ""
        self.enders = Marks([*self.value_end, *others, *(line + mark for mark in others)])

    def read(self) -> Wait[bool]:
        """Reads the call. False if it is none."""
        head = yield from self.source.short_until(self.name_end, self.tools.longest + 2, "\n<")
        if head is None or head[0].strip() not in self.tools:
            return False
        name = head[0].strip()
        self.source.at -= len(head[1]) if head[1] in self.before else 0
        self.source.pins = 0
        self.out.start_call(name)
        self.out.arguments("{")
        odd = list[str]()
        is_closed = yield from self._parameters(name, odd.append)
        if is_closed or not self.source.is_cut:
            self.out.arguments("}")
        self.out.end_call()
        self.out.text("".join(odd).strip())
        return True

    def _parameters(self, tool: str, odd: Callable[[str], None]) -> Wait[bool]:
        """Reads what stands up to the call's end, and gives what is no part of it to `odd`. False if nothing ended
        it."""
        source, seen = self.source, set[str]()
        while True:
            yield from source.spaces()
            mark = yield from source.next_of(self.parts)
            if mark == self.key:
                if not (yield from self._parameter(tool, seen)):
                    odd(source.vocabulary.literal(mark))
            elif mark in self.end:
                return True
            elif mark is not None:
                source.at -= len(mark)
                return True
            elif (yield from source.is_at_end()):
                return False
            else:
                mark = yield from source.until(self.parts, odd)
                source.at -= len(mark or "")

    def _parameter(self, tool: str, seen: set[str]) -> Wait[bool]:
        """Reads a key and its value. False if there is no key."""
        found = yield from self.source.short_until(self.key_end, KEY, "\n<")
        if found is None:
            return False
        key, says_text = found[0].strip(), self.key_types[found[1]]
        yield from self.source.next_of(self.value)
        self.out.arguments(f'{", " if seen else ""}"{escaped(key)}": ')
        seen.add(key)
        kinds = TEXT if says_text else self.tools.kinds(tool, key)
        value = value_of(ANY if says_text is False and kinds == TEXT else kinds, self.out.arguments)
        is_whole = yield from self._value(value.add, tool, seen)
        value.end(self.source.is_cut and not is_whole)
        return True

    def _value(self, sink: Callable[[str], None], tool: str, seen: set[str]) -> Wait[bool]:
        """Gives a value to `sink` up to a mark that ends it; False if none does."""
        source = self.source
        while True:
            mark = yield from source.until(self.enders, sink)
            if mark is None:
                return False
            start = source.pin()
            ends = yield from self._is_end(mark, tool, seen)
            source.unpin(start)
            if ends:
                source.at -= 0 if mark in self.value_end else len(mark)
                return True
            sink(source.vocabulary.literal(mark))

    def _is_end(self, mark: str, tool: str, seen: set[str]) -> Wait[bool]:
        """Whether a mark, which was read, ends a value: its place decides, since a value may hold such marks."""
        if mark.strip() == self.key:  # the end of the value before is missing
            found = yield from self.source.short_until(self.key_end, KEY, "\n<")
            return found is not None and found[0].strip() in {*self.tools.parameters(tool)} - seen
        yield from self.source.spaces()
        if (yield from self.source.is_at_end()):
            return True
        return (yield from self.source.next_of(self.parts if mark in self.value_end else self.stops)) is not None


class Braces:
    """Reads a call as Gemma 4 writes it: NAME{key:value}, where a mark stands for the quotes around a text."""

    def __init__(self, source: Source, out: Output, tools: Tools, stops: Marks, closers: Marks) -> None:
        self.source, self.out, self.tools, self.stops = source, out, tools, stops
        self.quote = source.vocabulary.spell(QUOTE)
        self._json, self._key, self._rest = JsonPieces(self.out.arguments), "", ""
        self.marks, self.within = Marks([self.quote, *stops.texts]), Marks([self.quote, *closers.texts])

    def read(self) -> Wait[bool]:
        """Reads the call. False if it is none."""
        source = self.source
        head = yield from source.short_until(Marks(["{"]), self.tools.longest + 2, "\n<")
        if head is None or head[0].strip() not in self.tools:
            return False
        source.pins = 0
        self.out.start_call(head[0].strip())
        self._json, self._key, self._rest = JsonPieces(self.out.arguments), "", ""
        self._json.feed("{")
        yield from self._pairs()
        if source.is_cut and source.ended and source.at >= len(source.text):
            self._json.cut()
        else:
            self._json.close()
        self.out.end_call()
        self.out.text(self._key + self._rest)
        return True

    def _pairs(self) -> Wait[None]:
        source = self.source
        while True:
            within = self._json.in_text
            mark = yield from source.until(*((self.within, self._text) if within else (self.marks, self._bare)))
            if mark is None:
                return
            if mark == self.quote:
                self._json.feed('"')
            elif within and not (yield from source.ahead(self._ends())):
                self._text(source.vocabulary.literal(mark))
            else:
                source.at -= len(mark)
                return

    def _ends(self) -> Wait[bool]:
        """Whether a mark within a text, which was read, ends the call."""
        yield from self.source.spaces()
        ends = yield from self.source.is_at_end()
        return ends or (yield from self.source.next_of(self.stops)) is not None

    def _text(self, piece: str) -> None:
        self._json.feed(escaped(piece))

    def _bare(self, piece: str) -> None:
        """What is no text: keys get their quotes."""
        for sign in piece:
            if self._json.is_done:
                self._rest += sign
            elif not self._json.wants_key or (not self._key and sign in '{}, \t\r\n"'):
                self._json.feed(sign)
            elif sign == ":":
                key, self._key = self._key, ""
                self._json.feed(f'"{escaped(key.strip())}":')
            else:
                self._key += sign
