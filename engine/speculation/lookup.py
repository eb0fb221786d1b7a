"""Prompt look-up: what followed the last time that the text ended as it ends now.

The last SHORTEST tokens of a sequence are looked up in its own text, prompt included, and in that of earlier sequences
with the same salt. Of the places found last the one counts whose text agrees longest: the longer it agrees, the
likelier it goes on. A code edit or a summary with quotes repeats long runs; prose repeats three words and goes on
otherwise, which the acceptance by length of agreement tells apart (`acceptance.py`).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from ..generation.sequence import Sequence
from .drafter import Draft

SHORTEST = 3  # tokens that must agree
LONGEST = 32  # that are compared
PLACES = 4  # the last ones, of each run of SHORTEST tokens
EARLIER = 8  # texts of sequences that have ended, for each salt
MOST_EARLIER = 1 << 17  # tokens of all of them
KINDS = ((24, "24 tokens agree"), (12, "12 tokens agree"), (6, "6 tokens agree"), (SHORTEST, "3 tokens agree"))


class Text:
    """Tokens with an index of every run of SHORTEST: the places behind its last occurrences."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.places: dict[tuple[int, ...], list[int]] = {}

    def grow(self, tokens: list[int]) -> None:
        """Takes in what has come since."""
        for token in tokens[len(self.tokens) :]:
            self.tokens.append(token)
            end = len(self.tokens)
            if end >= SHORTEST:
                places = self.places.setdefault(tuple(self.tokens[end - SHORTEST :]), [])
                places.append(end)
                if len(places) > PLACES + 1:  # the newest may be the end of the text itself
                    del places[0]

    def find(self, tail: list[int]) -> tuple[int, int] | None:
        """How many tokens before the best place agree with a tail of LONGEST tokens at most, and the place; a place
        with nothing behind it is none."""
        best: tuple[int, int] | None = None
        for place in reversed(self.places.get(tuple(tail[-SHORTEST:]), ())):
            if place < len(self.tokens):
                length = self._agreement(tail, place)
                if best is None or length > best[0]:
                    best = length, place
        return best

    def behind(self, place: int, most: int, goes_on: bool) -> list[int]:
        """What stands behind a place. goes_on: the text itself goes on with that, so that what repeats a few tokens
        again and again is as long as it is wanted."""
        found = self.tokens[place : place + most]
        period = len(self.tokens) - place
        while goes_on and len(found) < most:
            found.append(found[-period])
        return found

    def _agreement(self, tail: list[int], place: int) -> int:
        length, most = SHORTEST, min(len(tail), place)
        while length < most and self.tokens[place - 1 - length] == tail[-1 - length]:
            length += 1
        return length


class PromptLookup:
    """The drafter of a model."""

    is_free: Literal[True] = True
    token_s = 0.0

    def __init__(self) -> None:
        self.texts: dict[int, Text] = {}
        self.earlier: OrderedDict[int, tuple[bytes, Text]] = OrderedDict()

    def draft(self, sequence: Sequence, most: int) -> Draft | None:
        """What followed before; as `Drafter` says."""
        text = self.texts.setdefault(sequence.id, Text())
        text.grow(sequence.tokens)
        tail = sequence.tokens[-LONGEST:]
        if len(tail) < SHORTEST:
            return None
        texts = [text, *(one for salt, one in reversed(self.earlier.values()) if salt == sequence.salt)]
        hits = [(one, hit) for one in texts if (hit := one.find(tail)) is not None]
        found = [(length, one.behind(place, most, goes_on=one is text)) for one, (length, place) in hits]
        if not found:
            return None
        length, tokens = max(found, key=lambda one: one[0])
        return Draft(tokens, next(kind for least, kind in KINDS if length >= least))

    def forget(self, sequence: Sequence) -> None:
        """Keeps the text of a sequence that ended for those that come, as long as it is among the last ones."""
        text = self.texts.pop(sequence.id, None)
        if text is None or len(sequence.completion) == 0:
            return
        text.grow(sequence.tokens)
        self.earlier[sequence.id] = sequence.salt, text
        mine = [id for id, (salt, _) in self.earlier.items() if salt == sequence.salt]
        for id in mine[:-EARLIER]:
            del self.earlier[id]
        while self.earlier and sum(len(one.tokens) for _, one in self.earlier.values()) > MOST_EARLIER:
            self.earlier.popitem(last=False)
