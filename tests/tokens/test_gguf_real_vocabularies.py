"""Vocabularies of released models, where HEADRACE_VOCAB names a folder with them.

    HEADRACE_VOCAB=FOLDER python -m pytest tests/tokens/test_gguf_real_vocabularies.py

Beside each ggml-vocab-NAME.gguf lie its texts (.inp, apart by a line) and the ids that each must give (.out, a line
each, without BOS).
"""

from __future__ import annotations

import os
import random
import unicodedata
from pathlib import Path

import pytest
from vocabularies import pieces, random_text

from headrace.loaders.tokens.tokenizer import Tokenizer

FOLDER = os.environ.get("HEADRACE_VOCAB")
FILES = sorted(Path(FOLDER).glob("*.gguf")) if FOLDER else []
BETWEEN = "\n__ggml_vocab_test__\n"

pytestmark = pytest.mark.skipif(not FILES, reason="HEADRACE_VOCAB names no folder with vocabularies of released models")


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def released(request: pytest.FixtureRequest) -> tuple[Tokenizer, Path]:
    return Tokenizer.load(request.param), request.param


def expected(path: Path) -> list[tuple[str, list[int]]]:
    texts = path.with_name(path.name + ".inp").read_bytes().decode().split(BETWEEN)
    lines = path.with_name(path.name + ".out").read_text().split("\n")
    return [(text, [int(n) for n in line.split()]) for text, line in zip(texts, lines, strict=False)]


def test_every_text_gives_its_ids_and_comes_back(released: tuple[Tokenizer, Path]) -> None:
    tokenizer, path = released
    cases = expected(path)
    assert len(cases) > 40
    for text, ids in cases:
        assert tokenizer.encode(text, add_special_tokens=False) == ids, text
        assert tokenizer.decode(ids) == text
        assert "".join(pieces(tokenizer, ids)) == text


def test_random_texts_come_back(released: tuple[Tokenizer, Path]) -> None:
    tokenizer, path = released
    draw = random.Random(4)
    for _ in range(300):
        # U+2581 is a space to SentencePiece, and behind </s> it puts one.
        text = random_text(draw).replace("\u2581", "_").replace("</s>", "")
        ids = tokenizer.encode(text, add_special_tokens=False)
        composed = unicodedata.normalize("NFC", text) if path.stem == "ggml-vocab-qwen2" else text
        assert tokenizer.decode(ids, skip_special_tokens=False) == composed
        assert "".join(pieces(tokenizer, ids, False)) == composed
