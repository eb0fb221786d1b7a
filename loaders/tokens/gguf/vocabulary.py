"""What a GGUF says about text, checked: tokens, what each is, merges, and the tokens that have a part to play.

Nothing here knows how text is split or merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ....errors import TokenizerError, brief
from ...files.gguf_header import Texts

PREFIX = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# Ids where a file of this kind names none.
USUAL_IDS = {"llama": {"bos": 1, "eos": 2, "unknown": 0}, "t5": {"eos": 1, "unknown": 2, "padding": 0}}
AGAIN = "download it again, or convert the model again"


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """One file's vocabulary; made by `read`. source: the name that errors give. texts: a token each, all different.
    kinds: what each is (NORMAL, CONTROL, ...). scores: one each, or none."""

    metadata: Mapping[str, Any]
    source: str
    texts: tuple[str, ...]
    kinds: tuple[int, ...]
    scores: tuple[float, ...]

    @property
    def model(self) -> str:
        """Which kind of tokenizer it is: gpt2, llama, ..."""
        return str(self.metadata.get(PREFIX + "model"))

    @cached_property
    def ids(self) -> dict[str, int]:
        """Token to id."""
        return {text: number for number, text in enumerate(self.texts)}

    @cached_property
    def merges(self) -> list[tuple[str, str]]:
        """Pairs in the order of the file; raises TokenizerError for what is none."""
        pairs = []
        for text in self._texts("merges"):
            cut = text.find(" ", 1)  # a token may begin with a space
            if cut < 0:
                raise TokenizerError(f"{self.source} has {brief(text)} for a merge, a pair is needed: {AGAIN}")
            pairs.append((text[:cut], text[cut + 1 :]))
        return pairs

    def of_kind(self, *kinds: int) -> list[str]:
        """Tokens of these kinds, by id."""
        return [text for text, kind in zip(self.texts, self.kinds, strict=True) if kind in kinds]

    def flag(self, name: str, usual: bool) -> bool:
        """A switch of the file, `usual` where it says nothing."""
        value = self.metadata.get(PREFIX + name)
        return usual if value is None else bool(value)

    def named(self, role: str) -> str | None:
        """The token that plays a part (bos, eos, padding, ...), or None.

        Raises TokenizerError if the file names an id that is none.
        """
        key = f"{PREFIX}{role}_token_id"
        found = self.metadata.get(key)
        if found is None:
            found = USUAL_IDS.get(self.model, {}).get(role)
            return self.texts[found] if found is not None and found < len(self.texts) else None
        if found in (-1, 2**32 - 1):  # written for: there is none
            return None
        if not isinstance(found, int) or not 0 <= found < len(self.texts):
            raise TokenizerError(f"{self.source} has {brief(found)} for {key}, of {len(self.texts)} tokens: {AGAIN}")
        return self.texts[found]

    def _texts(self, name: str) -> Texts:
        return _array_of_texts(self.metadata, name, self.source)


def read(metadata: Mapping[str, Any], source: str) -> Vocabulary:
    """The vocabulary; raises TokenizerError if there is none, or if its parts do not fit each other."""
    texts = tuple(
        text or f"[EMPTY_{number}]" for number, text in enumerate(_array_of_texts(metadata, "tokens", source))
    )
    if not texts:
        raise TokenizerError(f"{source} has a vocabulary of no tokens: {AGAIN}")
    if len(set(texts)) < len(texts):
        seen: dict[str, int] = {}
        first, second = next((seen[t], n) for n, t in enumerate(texts) if seen.setdefault(t, n) != n)
        raise TokenizerError(f"{source} has {brief(texts[first])} for the tokens {first} and {second}: {AGAIN}")
    kinds = _numbers(metadata, "token_type", len(texts), source)
    if wrong := [kind for kind in kinds if not isinstance(kind, int)]:
        raise TokenizerError(f"{source} has {brief(wrong[0])} in {PREFIX}token_type, a whole number is needed: {AGAIN}")
    scores = _numbers(metadata, "scores", len(texts), source)
    return Vocabulary(
        metadata=metadata, source=source, texts=texts, scores=scores,
        kinds=tuple(int(kind) for kind in kinds) or (NORMAL,) * len(texts),
    )  # fmt: skip


def _array_of_texts(metadata: Mapping[str, Any], name: str, source: str) -> Texts:
    value = metadata.get(PREFIX + name)
    if value is None:
        raise TokenizerError(f"{source} has no {PREFIX}{name}: it holds no tokenizer that can be used; {AGAIN}")
    if not isinstance(value, Texts):
        raise TokenizerError(f"{source} has {brief(value)} for {PREFIX}{name}, an array of texts is needed: {AGAIN}")
    return value


def _numbers(metadata: Mapping[str, Any], name: str, count: int, source: str) -> tuple[float, ...]:
    """A number a token; empty where the file has none. Some files have more than tokens."""
    value = metadata.get(PREFIX + name)
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) < count or not all(isinstance(n, (int, float)) for n in value):
        many = f"{len(value)} numbers" if isinstance(value, list) else brief(value)
        raise TokenizerError(
            f"{source} has {many} for {PREFIX}{name}, one for each of {count} tokens is needed: {AGAIN}"
        )
    return tuple(value[:count])
