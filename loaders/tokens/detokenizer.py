"""Text that grows token by token, for every kind of decoder that a tokenizer.json can name.

The library's own `DecodeStream` is not used: it has no end, so it swallows what is still held back when the tokens
stop; with byte-fallback vocabularies it raises, or prints characters that `decode` of the same tokens does not have.
This file does not know which tokens are special: the ones that give no text are passed in. Nor does it know why a text
ends: stop strings are looked for where the text is used.
"""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Set

import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from ...errors import TokenizerError
from .library import Steps, guarded, steps_of


def start_stream(core: tokenizers.Tokenizer, silent: Set[str], steps: Steps, marks: Set[int]) -> TextStream:
    """A fresh stream in which the tokens `silent` give no text; steps: of the tokenizer's decoder; marks: ids of more
    tokens that give none, and that no character goes on behind."""
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return _ByteStream(core, silent, marks)
    return _WindowStream(core, silent, marks, {step["type"] for step in steps})


def streaming_steps(core: tokenizers.Tokenizer, source: str) -> Steps:
    """The steps of a decoder whose text can be streamed; `source` is the name that errors give.

    Raises TokenizerError if the decoder rewrites text it has already given.
    """
    steps = steps_of(core.decoder)
    if any(step["type"] == "Strip" and (step["stop"] > 0 or step["start"] > 1) for step in steps):
        raise TokenizerError(
            f"the decoder of {source}/tokenizer.json strips text at the end (step Strip), "
            "so its text cannot be streamed; decode all tokens at once instead"
        )
    return steps


class TextStream(ABC):
    """Text that grows token by token: all `push` plus `finish` is exactly what `decode` gives for the same ids.

    A character that is still incomplete is held back, so no push returns a broken one. Before a mark nothing is held
    back: a character that is not complete there never will be.
    """

    def __init__(self, core: tokenizers.Tokenizer, silent: Set[str], marks: Set[int]):
        self._core = core
        self._silent = silent
        self._marks = marks

    def push(self, token_id: int) -> str:
        """The text that this token completes; often empty."""
        token = self._core.id_to_token(token_id)
        if token_id in self._marks:
            return self._settle(token_id)
        return "" if token is None or token in self._silent else self._take(token_id, token)

    @abstractmethod
    def finish(self) -> str:
        """What is still held back. The stream must not be used afterwards."""

    @abstractmethod
    def _take(self, token_id: int, token: str) -> str:
        """The text that a token completes; it is in the vocabulary and not silent."""

    @abstractmethod
    def _settle(self, token_id: int) -> str:
        """What is held back before a mark."""


class _ByteStream(TextStream):
    """For byte-level vocabularies: each token is a string of bytes, so this is incremental UTF-8."""

    def __init__(self, core: tokenizers.Tokenizer, silent: Set[str], marks: Set[int]):
        super().__init__(core, silent, marks)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def _take(self, token_id: int, token: str) -> str:
        return self._utf8.decode(_bytes_of(token))

    def _settle(self, token_id: int) -> str:
        return self.finish()

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class _WindowStream(TextStream):
    """For every other decoder: decode the last token that was given out together with what is held back, and give
    what comes on top. The token before is what tells a decoder that it is not at the start of the text, where it
    would drop a space.

    Byte-fallback tokens (`<0xE6>`) are held back until another token ends their run: the decoder judges a run as a
    whole, and one invalid byte turns all of it, complete characters too, into replacement characters.
    """

    def __init__(self, core: tokenizers.Tokenizer, silent: Set[str], marks: Set[int], steps: set[str]):
        super().__init__(core, silent, marks)
        self._byte_fallback = "ByteFallback" in steps
        self._byte_level = "ByteLevel" in steps
        self._before: list[int] = []
        self._held: list[int] = []

    def _take(self, token_id: int, token: str) -> str:
        self._held.append(token_id)
        if self._byte_fallback and _is_byte(token):
            return ""
        text = self._text()
        if self._byte_level and text.endswith("\ufffd"):
            return ""
        self._before, self._held = [token_id], []
        return text

    def _settle(self, token_id: int) -> str:
        text = self._text()
        self._before, self._held = [token_id], []
        return text

    def finish(self) -> str:
        return self._text()

    def _text(self) -> str:
        with guarded("tokens cannot be decoded"):
            ids = [self._before, self._before + self._held]
            known, text = self._core.decode_batch(ids, skip_special_tokens=False)
        return str(text[len(known) :])


def bytes_of(token: str, steps: Steps) -> bytes:
    """The bytes that a token stands for in the middle of a text; they may be a part of a character."""
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        return _bytes_of(token)
    if "ByteFallback" in kinds and _is_byte(token):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


def _is_byte(token: str) -> bool:
    """Whether the byte-fallback decoder reads `token` as one byte."""
    if len(token) != 6 or not token.startswith("<0x") or not token.endswith(">"):
        return False
    return all(digit in "0123456789abcdefABCDEF" for digit in token[3:5])


def _byte_alphabet() -> dict[str, int]:
    """The letter that byte-level vocabularies use for each byte: printable ones stand for themselves, the others
    are, in order, the letters from U+0100 on."""
    letters = {chr(byte): byte for byte in range(256) if chr(byte) in set(ByteLevel.alphabet())}
    others = (byte for byte in range(256) if chr(byte) not in letters)
    return letters | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def _bytes_of(token: str) -> bytes:
    """Bytes of a byte-level token; one with letters from outside of the alphabet is an added token, plain text."""
    values = [_BYTES.get(letter) for letter in token]
    known = [value for value in values if value is not None]
    return bytes(known) if len(known) == len(values) else token.encode()
