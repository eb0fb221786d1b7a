"""What a model's files say about text: tokenizer, where an answer ends, what the chat template makes of a chat."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....errors import HeadraceError
from ....loaders import regular
from ....loaders.families import read_eos
from ....loaders.model_source import Source
from ....loaders.tokens.tokenizer import Tokenizer

SAMPLE = (
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "How are you?"},
)


@dataclass(frozen=True, kw_only=True)
class Text:
    """A tokenizer and its chat templates. source: where it was read; named: how a GGUF calls its kind and its way to
    split text; special: tokens that have a part to play, by it; ends: ids and spellings of what ends an answer; sample:
    what the default template makes of SAMPLE, None where `refusal` says why not."""

    source: str
    kind: str
    splits: tuple[str, ...]
    named: tuple[str, ...]
    vocabulary: int
    special: Mapping[str, str]
    special_count: int
    ends: tuple[tuple[int, str], ...]
    templates: tuple[str, ...]
    sample: str | None
    refusal: str
    notes: tuple[str, ...]


def of_source(source: Source) -> Text | str:
    """The text side of a model, or why it cannot be said."""
    try:
        if source.gguf is not None:
            return _of(Tokenizer.of_gguf(source.gguf, source.name), source, "the GGUF's metadata", ())
        if source.place is None:
            return "there are no tokenizer files beside the config"
        return _of(Tokenizer.load(source.place), source, "tokenizer.json", _ends(source, source.place))
    except HeadraceError as error:
        return str(error)


def _of(tokenizer: Tokenizer, source: Source, file: str, more: tuple[int, ...]) -> Text:
    sample, refusal = _sample(tokenizer)
    keys = ("tokenizer.ggml.model", "tokenizer.ggml.pre")
    ends = dict.fromkeys((*more, *tokenizer.eos_ids))
    return Text(
        source=file,
        kind=tokenizer.kind,
        splits=tokenizer.splits,
        named=tuple(str((source.gguf or {})[key]) for key in keys if key in (source.gguf or {})),
        vocabulary=tokenizer.vocab_size,
        special=tokenizer.special_texts,
        special_count=len(tokenizer.special_tokens),
        ends=tuple((id, tokenizer.decode([id], skip_special_tokens=False)) for id in ends),
        templates=tuple(tokenizer.templates),
        sample=sample,
        refusal=refusal,
        notes=tokenizer.notes,
    )


def _sample(tokenizer: Tokenizer) -> tuple[str | None, str]:
    """What the template makes of a conversation, or nothing and why."""
    try:
        return tokenizer.render_chat(SAMPLE), ""
    except HeadraceError as error:
        return None, str(error)


def _ends(source: Source, place: Path) -> tuple[int, ...]:
    """Ends of an answer by config.json and generation_config.json; what is damaged there a run says."""
    values = [source.config.get("eos_token_id")]
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        values.append(json.loads(regular.text(place / "generation_config.json")).get("eos_token_id"))
    return tuple(id for value in values for id in _ids(value))


def _ids(value: Any) -> tuple[int, ...]:
    try:
        return read_eos(value)
    except ValueError:
        return ()
