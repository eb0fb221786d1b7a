"""Tokens of one completion -> text that can be shown: stop strings found, nothing half-written emitted.

Text that might be the beginning of a stop string is held back until it is clear whether it is one. Works on what the
tokenizer's stream gives, which never breaks a character; without a tokenizer there is no text.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...loaders.tokens.tokenizer import Tokenizer


class StopStrings:
    """Text that grows, up to the first stop string. keeps: and with it. text: all of it so far; stopped: whether one
    was found; hit: which one."""

    def __init__(self, stop: Sequence[str], keeps: bool = False) -> None:
        self.stop, self.keeps = stop, keeps
        self.text = ""
        self.shown = 0
        self.stopped = False
        self.hit: str | None = None

    def add(self, piece: str, final: bool = False) -> str:
        """What can be shown now; final: nothing more will come."""
        longest = max(map(len, self.stop), default=1)
        start = max(0, len(self.text) - longest + 1)  # a stop string cannot begin before this
        self.text += piece
        found = [(place, s) for s in self.stop if (place := self.text.find(s, start)) >= 0]
        if found:
            cut, self.hit = min(found)
            self.stopped = True
            self.text = self.text[: cut + len(self.hit) * self.keeps]
        safe = len(self.text) if final or self.stopped else len(self.text) - self._held()
        out, self.shown = self.text[self.shown : safe], max(self.shown, safe)
        return out

    def _held(self) -> int:
        """Characters at the end that could begin a stop string."""
        return max(map(self._begun, self.stop), default=0)

    def _begun(self, stop: str) -> int:
        """Characters at the end with which a stop string could begin."""
        place = max(0, len(self.text) - len(stop) + 1)
        while (place := self.text.find(stop[0], place)) >= 0:
            if stop.startswith(self.text[place:]):
                return len(self.text) - place
            place += 1
        return 0


class TextBuilder(StopStrings):
    """The growing text of one completion."""

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str], keeps: bool = False) -> None:
        super().__init__(stop, keeps)
        self.stream = tokenizer.stream() if tokenizer is not None else None

    def push(self, token: int) -> str:
        """Adds a token; returns the text that can be shown now. Sets `stopped` once a stop string was completed."""
        return "" if self.stream is None else self.add(self.stream.push(token))

    def finish(self) -> str:
        """Returns what was held back, after the last token."""
        return "" if self.stream is None or self.stopped else self.add(self.stream.finish(), final=True)
