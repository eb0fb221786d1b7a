"""JSON as a model writes it, piece by piece: how deep it is, where it ends, and what completes it.

What is given out so far is always the beginning of the JSON text, and never taken back. So a key is held until its
value begins, and a number until it ends. What JSON forbids and nobody can misread is mended: line breaks in texts,
backslashes that escape nothing, a comma that nothing follows. Anything else that is no JSON is handed on as it was
written: whoever made the tool can then say what is wrong, while a guess could be carried out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

LITERALS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_PLAIN = re.compile(r'[^\\"\x00-\x1f]+')
_WORD = re.compile(r"[A-Za-z0-9+.\-]+")
_CLOSED_BY = {"{": "}", "[": "]"}
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_BEGUN_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")


def escaped(text: str) -> str:
    """Text as it stands within a JSON text; that of a sum is the sum of those of its parts."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


class JsonPieces:
    """One JSON value. sink gets its text."""

    def __init__(self, sink: Callable[[str], None]) -> None:
        self.sink = sink
        self.is_done = False  # the value is complete
        self.is_broken = False  # it is no JSON: from there on all is handed on
        self.in_text = False
        self._open: list[str] = []
        self._wants = "value"  # value, key, colon, comma
        self._held = ""  # what is not given out yet: comma, key and colon before a value, or a word
        self._is_key = False
        self._word = self._escape = ""
        self._may_close = False  # right behind an opening bracket

    @property
    def wants_key(self) -> bool:
        """Whether a key may begin here."""
        return self._wants == "key" and not self.in_text

    def feed(self, text: str) -> int:
        """Takes text up to the end of the value; returns how much that was."""
        at = 0
        while at < len(text) and not self.is_done:
            if self.is_broken:
                self.sink(text[at:])
                return len(text)
            at = self._in_text(text, at) if self.in_text else self._outside(text, at)
        return at

    def close(self) -> None:
        """Completes what is open; an empty value is an empty object."""
        if not self.is_broken and not self.is_done:
            self._complete_text()
            self._word = _completed(self._word)
            self._complete_word()
            self._close_brackets()

    def _close_brackets(self) -> None:
        if self.is_done:
            return
        if not self._open:
            self.sink("{}")
        elif self._wants == "colon":
            self.sink(f"{self._held}: null")
        elif self._wants == "value" and self._open[-1] == "{":
            self.sink(f"{self._held}null")
        while self._open:
            self.sink(_CLOSED_BY[self._open.pop()])
        self.is_done = True

    def cut(self) -> None:
        """Gives out what is held, and leaves the value open."""
        if not self.is_done:
            self.sink(self._held + self._word + self._escape)

    # ---- within texts

    def _in_text(self, text: str, at: int) -> int:
        if self._escape:
            return self._escaped(text, at)
        if match := _PLAIN.match(text, at):
            self._give(match.group())
            return match.end()
        sign = text[at]
        if sign == "\\":
            self._escape = sign
        elif sign == '"':
            self._end_text()
        else:
            self._give(escaped(sign))
        return at + 1

    def _escaped(self, text: str, at: int) -> int:
        """Goes on with an escape that has begun."""
        self._escape += text[at]
        if _ESCAPE.fullmatch(self._escape):
            self._give(self._escape)
        elif not _BEGUN_ESCAPE.fullmatch(self._escape):
            plain, self._escape = self._escape[:-1], ""  # its last sign may be a quote, or a backslash
            self._give("\\" + plain)
            return at
        else:
            return at + 1
        self._escape = ""
        return at + 1

    def _give(self, text: str) -> None:
        if self._is_key:
            self._held += text
        else:
            self.sink(text)

    def _end_text(self) -> None:
        self._give('"')
        self.in_text = False
        if self._is_key:
            self._is_key, self._wants = False, "colon"
        else:
            self._end_value()

    def _complete_text(self) -> None:
        if self.in_text:
            if self._escape:
                self._give("\\" + self._escape)
                self._escape = ""
            self._end_text()

    # ---- outside of texts

    def _outside(self, text: str, at: int) -> int:
        if match := _WORD.match(text, at):
            if self._wants != "value":
                return self._break(at)
            self._word += match.group()
            return match.end()
        if self._word:
            self._complete_word()
            return at
        sign = text[at]
        if sign in " \t\r\n":
            self._blank(sign)
        elif sign == '"' and self._wants in ("value", "key"):
            self._begin_text()
        elif sign == ":" and self._wants == "colon":
            self._held, self._wants = self._held + sign, "value"
        elif sign == "," and self._wants == "comma":
            self._held, self._wants = self._held + sign, "key" if self._open[-1] == "{" else "value"
            self._may_close = False
        elif sign in _CLOSED_BY and self._wants == "value":
            self._flush(sign)
            self._open.append(sign)
            self._wants, self._may_close = ("key" if sign == "{" else "value"), True
        elif self._open and sign == _CLOSED_BY[self._open[-1]] and self._can_close():
            self._held = ""  # a comma that nothing follows
            self._flush(sign)
            self._open.pop()
            self._end_value()
        else:
            return self._break(at)
        return at + 1

    def _can_close(self) -> bool:
        return self._wants == "comma" or self._may_close or self._held.strip() == ","

    def _blank(self, sign: str) -> None:
        """Blanks count only within the value."""
        if self._held:
            self._held += sign
        elif self._open:
            self.sink(sign)

    def _begin_text(self) -> None:
        self.in_text, self._is_key = True, self._wants == "key"
        if self._is_key:
            self._held += '"'
        else:
            self._flush('"')

    def _flush(self, text: str) -> None:
        held, self._held, self._may_close = self._held, "", False
        self.sink(held + text)

    def _complete_word(self) -> None:
        """A number or a literal has ended."""
        word, self._word = self._word, ""
        if not word:
            return
        if not self._open and word in ("null", "None"):  # arguments that there are none of
            word, known = "{}", "{}"
        else:
            known = LITERALS.get(word, word if NUMBER.fullmatch(word) or word.startswith('"') else "")
        if known:
            self._flush(known)
            self._end_value()
        else:
            self._word = word
            self._break(0)

    def _break(self, at: int) -> int:
        """No JSON any more: what is held is given out, and so is all that comes."""
        held, self._held, self._word = self._held + self._word, "", ""
        self.is_broken = True
        self.sink(held)
        return at

    def _end_value(self) -> None:
        self._may_close = False
        self._wants = "comma"
        self.is_done = not self._open


def _completed(word: str) -> str:
    """A number or a literal that was not written to its end."""
    if not word or word in LITERALS or NUMBER.fullmatch(word):
        return word
    if NUMBER.fullmatch(f"{word}0"):
        return f"{word}0"
    return next((known for known in LITERALS if known.startswith(word)), f'"{word}"')
