"""Tokens to a growing text in which marks can be found, and what a reading asks of that text.

A mark that is a token of its own stands in the text as one character that no decoded text has, a lone surrogate: so
text that only looks like the mark is none. Marks that are no tokens are looked for as text.
A reading is a generator that yields where it needs more text. What it decides never depends on how the text was cut:
whatever could still become a mark, or a longer one, is waited for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import TypeVar

from .events import SPACE

T = TypeVar("T")
Wait = Generator[None, None, T]
FIRST = 0xD800  # of the characters that stand for tokens
_STRAY = re.compile("[\ud800-\udfff]")
_OUTSIDE = re.compile(f"[^{SPACE}]")


class Vocabulary:
    """Which marks are tokens. texts: all that a dialect looks for; tokens: of the vocabulary that are never cut."""

    def __init__(self, texts: Iterable[str], tokens: Mapping[str, int]) -> None:
        everything = tuple(texts)
        found = sorted((t for t in tokens if is_tag(t) and any(t in one for one in everything)), key=len, reverse=True)
        self._spelled = {text: chr(FIRST + place) for place, text in enumerate(found)}
        self._of_id = {tokens[text]: (text, sign) for text, sign in self._spelled.items()}
        self._literal = {ord(sign): text for text, sign in self._spelled.items()}

    @property
    def ids(self) -> frozenset[int]:
        """Tokens that are marks."""
        return frozenset(self._of_id)

    def text_of(self, token_id: int, piece: str) -> str:
        """What a token adds to the text; piece: what the stream of visible text gives for it, with or without a mark's
        own text."""
        piece = _STRAY.sub("\ufffd", piece)
        text, sign = self._of_id.get(token_id, ("", ""))
        return piece.removesuffix(text) + sign if text else piece

    def spell(self, text: str) -> str:
        """A mark, or a prompt, as it stands in the text."""
        for token, sign in self._spelled.items():  # long ones first
            text = text.replace(token, sign)
        return text

    def token_of(self, sign: str) -> int | None:
        """The token that a character of a spelled text stands for, None for one that is text."""
        return next((token for token, (_, one) in self._of_id.items() if one == sign), None)

    def literal(self, text: str) -> str:
        """Text as a person reads it."""
        return text if text.isascii() else text.translate(self._literal)


def is_tag(token: str) -> bool:
    """Whether a token may be a mark: vocabularies have runs of blanks and letters as tokens, too."""
    return len(token) > 2 and any(sign in token for sign in "<[|｜")


class Marks:
    """Texts that are looked for together: the first one counts, of those at one place the longest."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(sorted({one for one in texts if one}, key=len, reverse=True))
        self._pattern = re.compile("|".join(map(re.escape, self.texts)) or r"(?!)")
        self._begun = frozenset(text[:size] for text in self.texts for size in range(1, len(text)))
        self._longest = len(self.texts[0]) if self.texts else 0

    def look(self, text: str, at: int, ended: bool) -> tuple[str | None, int]:
        """The first mark of text[at:], and where it begins; without one None, and up to where there is none."""
        match = self._pattern.search(text, at)
        first = match.start() if match else len(text)
        if not ended:
            for place in range(max(at, len(text) - self._longest + 1), len(text)):
                if place > first:
                    break
                if text[place:] in self._begun:
                    return None, place  # a mark may begin here, or one longer than what was found
        return (match.group() if match else None), first

    def at(self, text: str, at: int, ended: bool) -> tuple[str | None, bool]:
        """The mark that text[at:] begins with, and whether that is certain."""
        rest = text[at : at + self._longest]
        if not ended and (rest in self._begun or not rest):
            return None, False
        return next((one for one in self.texts if rest.startswith(one)), None), True


class Source:
    """The text that was not read yet."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.text, self.at = "", 0
        self.ended = self.is_cut = False  # cut: the answer would have gone on
        self.pins = 0  # readings that may come back to where they were

    def add(self, piece: str) -> None:
        """More text."""
        if self.pins == 0 and self.at:
            self.text, self.at = self.text[self.at :], 0
        self.text += piece

    def is_at_end(self) -> Wait[bool]:
        """Whether nothing follows."""
        while self.at >= len(self.text) and not self.ended:
            yield
        return self.at >= len(self.text)

    def character(self) -> Wait[str]:
        """The next character, which stays; "" at the end."""
        ended = yield from self.is_at_end()
        return "" if ended else self.text[self.at]

    def spaces(self) -> Wait[str]:
        """Reads blanks."""
        start, found = self.at, ""
        while True:
            match = _OUTSIDE.search(self.text, start)
            start = match.start() if match else len(self.text)
            found += self.text[self.at : start]
            self.at = start
            if match or self.ended:
                return found
            yield
            start = self.at

    def next_of(self, marks: Marks) -> Wait[str | None]:
        """The mark that follows at once, which is read; None if none does."""
        while True:
            found, certain = marks.at(self.text, self.at, self.ended)
            if certain:
                self.at += len(found or "")
                return found
            yield

    def until(self, marks: Marks, sink: Callable[[str], None]) -> Wait[str | None]:
        """Gives all before the first mark to `sink` as it comes, and reads that mark; None if the text ends before."""
        while True:
            found, first = marks.look(self.text, self.at, self.ended)
            if first > self.at:
                piece = self.text[self.at : first]
                self.at = first
                sink(self.vocabulary.literal(piece))
            if found or self.ended:
                self.at += len(found or "")
                return found
            yield

    def short_until(self, marks: Marks, limit: int, never: str = "") -> Wait[tuple[str, str] | None]:
        """Reads a text of up to `limit` characters, none of them of `never`, and the mark behind it, and gives both;
        else None, and nothing is read."""
        while True:
            found, first = marks.look(self.text, self.at, self.ended)
            before = self.text[self.at : first]
            if len(before) > limit or any(sign in before for sign in never):
                return None
            if found:
                self.at = first + len(found)
                return self.vocabulary.literal(before), found
            if self.ended:
                return None
            yield

    def ahead(self, reading: Wait[T]) -> Wait[T]:
        """What a reading finds, without having read it."""
        start = self.pin()
        found = yield from reading
        self.unpin(start)
        return found

    def pin(self) -> int:
        """From here on text is kept, so that `unpin` can come back."""
        self.pins += 1
        return self.at

    def unpin(self, start: int | None = None) -> None:
        """Text may be forgotten again. start: comes back there."""
        self.pins -= 1
        if start is not None:
            self.at = start
