"""The vocabularies of `vocabularies.py` as the metadata of a GGUF file."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from typing import Any

import tokenizers

from headrace.loaders.files.gguf_header import Texts

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def texts(values: Iterable[str], width: int = 8) -> Texts:
    """An array of strings as a header has it."""
    many = [value.encode() for value in values]
    length = "<I" if width == 4 else "<Q"
    return Texts(b"".join(struct.pack(length, len(value)) + value for value in many), len(many), width)


def metadata(model: str, tokens: dict[str, int], **values: Any) -> dict[str, Any]:
    """Metadata of a vocabulary: tokens and what each is, in order; lists of texts become arrays of them."""
    given = {"model": model, "tokens": list(tokens), "token_type": list(tokens.values()), **values}
    return {
        key if "." in key else f"tokenizer.ggml.{key}": texts(value) if _is_texts(value) else value
        for key, value in given.items()
    }


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def of_bpe(core: tokenizers.Tokenizer, model: str = "gpt2", **values: Any) -> dict[str, Any]:
    """Metadata of a BPE tokenizer with its merges, or with scores by their order in place of them (model llama)."""
    data = json.loads(core.to_str())
    added = {token["content"]: token for token in data["added_tokens"]}
    by_id = sorted(core.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    merges = [tuple(merge) for merge in data["model"]["merges"]]

    def kind(text: str) -> int:
        if text == data["model"].get("unk_token"):
            return UNKNOWN
        if text in added:
            return CONTROL if added[text]["special"] else USER_DEFINED
        return BYTE if data["model"]["byte_fallback"] and text.startswith("<0x") else NORMAL

    tokens = {text: kind(text) for text, _ in by_id}
    if model == "llama":
        ranks = {"".join(pair): -float(rank) for rank, pair in reversed(list(enumerate(merges)))}
        values["scores"] = [ranks.get(text, -float(len(merges)) - 1) for text in tokens]
    else:
        values["merges"] = [" ".join(pair) for pair in merges]
    return metadata(
        model, tokens, bos_token_id=tokens_at(tokens, "<s>"), eos_token_id=tokens_at(tokens, "</s>"), **values
    )


def tokens_at(tokens: dict[str, int], text: str) -> int:
    return list(tokens).index(text)
