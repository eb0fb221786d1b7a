"""Harmony, as gpt-oss writes it: an answer is a row of messages, each with a header that says for whom it is.

Headers of real answers are often not as they should be: the recipient before or after the channel, or on any channel,
parts missing, no end. So a header is searched for what it says, and nothing is demanded.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from .calls import Calls
from .events import Output
from .lexer import Marks, Source, Wait

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
HEADER = 300  # characters of the longest header
_RECIPIENT = re.compile(r"\bto\s*=\s*([^\s<{]+)")
_CHANNEL = re.compile(r"\b(analysis|commentary|final)")
_BARE = Marks(["to=", "assistant"])  # what a header without marks begins with
_KNOWN = re.compile(r"<\|(?:start|channel|message)\|>|<\|constrain\|>|\b(?:json|code)\b")
_ROLE = re.compile(r"\s*assistant")


class Channels:
    """Reads one answer. think(bool) is told whether what follows is reasoning."""

    def __init__(self, source: Source, out: Output, calls: Calls, think: Callable[[bool], None]) -> None:
        self.source, self.out, self.calls, self.think = source, out, calls, think
        spell = source.vocabulary.spell
        self.ends = tuple(map(spell, ENDS))
        self.start, self.channel, self.message, self.constrain = map(spell, (START, CHANNEL, MESSAGE, CONSTRAIN))
        self.first = Marks([self.start, self.channel, self.message, self.constrain, *self.ends])
        self.head_end = Marks([self.message, self.start, *self.ends])
        self.body_end = Marks([self.start, self.channel, *self.ends])
        blank = r"\s*"
        self.loose = re.compile(  # a header that nothing ends
            rf"(?:{blank}assistant)?(?:{blank}to=[^\s{{\ud800-\udfff]+)?{blank}(?:{re.escape(self.channel)})?"
            rf"{blank}(?:analysis|commentary|final)?(?:{blank}to=[^\s{{\ud800-\udfff]+)?"
            rf"{blank}(?:{re.escape(self.constrain)})?(?:{blank}json\b)?{blank}"
        )

    def read(self) -> Wait[None]:
        """Reads messages to the end."""
        while not (yield from self.source.is_at_end()):
            mark = yield from self.source.next_of(self.first)
            if mark in self.ends:
                continue
            if mark is None and not (yield from self.source.ahead(self._has_header())):
                yield from self._body("", "", "")
                continue
            self.source.at -= len(mark) if mark in (self.channel, self.constrain, self.message) else 0
            head = yield from self._head()
            shown = self.source.vocabulary.literal((self.start if mark == self.start else "") + head)
            recipient = _RECIPIENT.search(shown)
            channel = _CHANNEL.search(_ROLE.sub("", shown))
            odd = _CHANNEL.sub("", _RECIPIENT.sub("", _KNOWN.sub(" ", _ROLE.sub("", shown, 1)), 1), 1)
            if odd.strip():  # no part of a header
                self.out.text(" ".join([*odd.split(), ""]))
            yield from self._body(channel.group(1) if channel else "", recipient.group(1) if recipient else "", shown)

    def _has_header(self) -> Wait[bool]:
        """Whether a message begins without a mark, but with a recipient, or with the role."""
        yield from self.source.spaces()
        if (yield from self.source.next_of(_BARE)) is None:
            return False
        found = yield from self.source.short_until(self.first, HEADER, "{")
        return found is not None and found[1] in (self.channel, self.message, self.constrain)

    def _head(self) -> Wait[str]:
        """Reads a header, and what ends it, if that is there."""
        source = self.source
        start = source.pin()
        found = yield from source.short_until(self.head_end, HEADER)
        if found is not None and found[1] == self.message:
            source.unpin()
            return source.text[start : source.at]
        end = start + HEADER if found is None else source.at - len(found[1])
        source.at = start
        match = self.loose.match(source.text[start:end])
        source.at += match.end() if match else 0
        source.unpin()
        return source.text[start : source.at]

    def _body(self, channel: str, recipient: str, head: str) -> Wait[None]:
        """Reads a message behind its header."""
        thinking = channel == "analysis"
        tool = self.calls.tool_of(recipient) if recipient else None
        if tool is not None:
            yield from self._call(tool)
            return
        self.think(thinking)
        sink = self.out.reasoning if thinking else self.out.text
        self.out.begin(thinking)
        is_raw = recipient not in ("", "assistant", "user", "all")
        if is_raw:  # a call of what is no tool of ours
            sink(head)
        mark = yield from self.source.until(self.body_end, sink)
        if is_raw and mark in self.ends:
            sink(self.source.vocabulary.literal(mark))
        self.out.keep_space(thinking)
        self.source.at -= len(mark) if mark in (self.start, self.channel) else 0

    def _call(self, tool: str) -> Wait[None]:
        """Reads arguments."""
        self.think(False)
        self.calls.start(tool)
        yield from self.calls.arguments(None, self.body_end)
        self.out.end_call()
        odd: list[str] = []
        mark = yield from self.source.until(self.body_end, odd.append)
        self.out.text("".join(odd).strip())
        self.source.at -= len(mark) if mark in (self.start, self.channel) else 0
