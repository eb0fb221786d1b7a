"""Answers of the model in its own tokens, put back where a conversation brings them as text.

Text that comes back is cut into tokens anew, and not always as the model wrote it: from there on nothing of the cache
fits. So the tokens of an answer are kept, by a digest of the prompt that it followed. A prompt that begins in the same
way takes them, as far as its own text goes along.

What the model reads stays the same to the byte: tokens are compared by the bytes they stand for, special tokens by
their ids. Where a template leaves reasoning out or a client writes arguments in another way, the tokens of the text
follow, from the first place where both have a token's end. Knows ids and bytes, no dialect and no template.
"""

from __future__ import annotations

import hashlib
import threading
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from ...loaders.tokens.tokenizer import Tokenizer

MOST_TOKENS = 4_000_000  # kept, 4 bytes each: 16 MB
COST = 168  # tokens that an answer counts besides its own: key, list, array and its share of tables, 670 bytes
MOST_ALIKE = 8  # answers to one prompt
HEAD = 32  # tokens at a prompt's end among which the last special one is looked for
Key = tuple[int, bytes]  # bytes before, and their digest


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an answer begins. key: of what is before `head`, the prompt's last tokens: they begin with a special one,
    where every text has a token's end."""

    key: Key
    head: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PromptIds:
    """A prompt's ids. place: of its answer, if that is to be kept. answers: how many earlier ones are in it with other
    tokens than their text would have, `tokens` of them."""

    ids: list[int]
    place: Place | None = None
    answers: int = 0
    tokens: int = 0


@dataclass
class _Text:
    """Ids as bytes. ends: by the place of a token's end, how many tokens there are up to it."""

    ids: Sequence[int]
    data: bytes
    ends: dict[int, int]


@dataclass
class _Spliced:
    """Ids that are being put together: up to a place of the text, taking in its first `taken` tokens."""

    ids: list[int] = field(default_factory=list)
    at: int = 0
    taken: int = 0
    answers: int = 0
    tokens: int = 0


class OwnAnswers:
    """Of one model; for any number of threads. most: tokens that are kept, those that were used longest ago go."""

    def __init__(self, tokenizer: Tokenizer, most: int = MOST_TOKENS) -> None:
        self.tokenizer, self.most = tokenizer, most
        self.special = frozenset(tokenizer.added_tokens.values())
        self.kept = 0  # tokens, by what they count
        self._answers: OrderedDict[Key, list[array[int]]] = OrderedDict()
        self._lengths: Counter[int] = Counter()
        self._bytes: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Answers that are kept."""
        return sum(map(len, self._answers.values()))

    def splice(self, ids: list[int]) -> PromptIds:
        """The ids of a conversation's prompt with the model's own tokens for answers of earlier turns, and where its
        answer begins."""
        text = self._read(ids)
        with self._lock:
            found = self._put_in(text)
        if found.answers and not self._says_the_same(found.ids, ids):
            found = _Spliced(ids=ids)
        return PromptIds(
            ids=found.ids, place=self._end(found.ids, text.data), answers=found.answers, tokens=found.tokens
        )

    def keep(self, place: Place, completion: Iterable[int]) -> None:
        """Keeps the tokens of an answer."""
        answer = array("i", [*place.head, *completion])
        if len(answer) == len(place.head):
            return
        with self._lock:
            alike = self._answers.setdefault(place.key, [])
            if answer in alike:
                alike.remove(answer)
            else:
                self.kept += _cost(answer)
                self._lengths[place.key[0]] += 1
            alike.append(answer)
            self._answers.move_to_end(place.key)
            if len(alike) > MOST_ALIKE:
                self._forget(place.key, alike.pop(0))
            while self.kept > self.most:
                key, oldest = self._answers.popitem(last=False)
                for one in oldest:
                    self._forget(key, one)

    def _forget(self, key: Key, answer: array[int]) -> None:
        self.kept -= _cost(answer)
        self._lengths[key[0]] -= 1
        if not self._lengths[key[0]]:
            del self._lengths[key[0]]

    def _put_in(self, text: _Text) -> _Spliced:
        """The tokens of a text, with those of answers that are kept."""
        found, before, digest = _Spliced(), 0, hashlib.blake2b(digest_size=16)
        for length in sorted(one for one in self._lengths if one <= len(text.data)):
            digest.update(text.data[before:length])
            before = length
            key = length, digest.copy().digest()
            if length >= found.at and length in text.ends and key in self._answers:
                self._answers.move_to_end(key)
                self._take(found, text, key)
        found.ids += text.ids[found.taken :]
        return found

    def _take(self, found: _Spliced, text: _Text, key: Key) -> None:
        """Takes of the answers of a place the one that goes along furthest with the text, the newest of several."""
        start = key[0]
        fits = [(self._fit(answer, text, start), answer) for answer in reversed(self._answers[key])]
        (count, end), answer = max(fits, key=lambda one: one[0][1])
        own, as_text = list(answer[:count]), text.ids[text.ends[start] : text.ends[end]]
        if own == as_text:
            return
        found.ids += [*text.ids[found.taken : text.ends[start]], *own]
        found.at, found.taken = end, text.ends[end]
        found.answers, found.tokens = found.answers + 1, found.tokens + count

    def _fit(self, answer: Iterable[int], text: _Text, start: int) -> tuple[int, int]:
        """How many tokens of an answer have the bytes of a text from `start` on, up to an end of a token in both; and
        where that is."""
        best, at = (0, start), start
        for count, token in enumerate(answer, 1):
            piece = self._bytes_of(token)
            if not text.data.startswith(piece, at):
                break
            at += len(piece)
            if at in text.ends:
                best = count, at
        return best

    def _end(self, ids: list[int], data: bytes) -> Place:
        """Where the answer to a prompt begins."""
        last = next((i for i in range(len(ids) - 1, max(-1, len(ids) - 1 - HEAD), -1) if ids[i] in self.special), None)
        head = () if last is None else tuple(ids[last:])
        length = len(data) - sum(len(self._bytes_of(token)) for token in head)
        return Place(key=(length, hashlib.blake2b(data[:length], digest_size=16).digest()), head=head)

    def _says_the_same(self, ids: list[int], others: list[int]) -> bool:
        """Whether tokens are the same text also by the tokenizer's own account."""
        one, other = (self.tokenizer.decode(both, skip_special_tokens=False) for both in (ids, others))
        return one == other

    def _read(self, ids: Sequence[int]) -> _Text:
        pieces = list(map(self._bytes_of, ids))
        ends = {end: count for count, end in enumerate(accumulate(map(len, pieces), initial=0))}
        return _Text(ids, b"".join(pieces), ends)

    def _bytes_of(self, token: int) -> bytes:
        """The bytes of a token; of one that is no text a sign with its id, which no text has."""
        found = self._bytes.get(token)
        if found is None:
            plain = b"" if token in self.special else self.tokenizer.bytes_of(token)
            found = plain.replace(b"\xff", b"\xff\x00") if plain else b"\xff\x01" + token.to_bytes(4, "little")
            self._bytes[token] = found
        return found


def _cost(answer: array[int]) -> int:
    return len(answer) + COST
