"""Text that grows token by token, against what `tokenizers` decodes from all tokens at once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders
from vocabularies import STYLES, TEXT, byte_fallback, byte_level, made, nested_byte_level, pieces, random_text

from headrace.errors import TokenizerError
from headrace.loaders.tokens.tokenizer import Tokenizer


@pytest.fixture(scope="module", params=STYLES, ids=lambda style: style.__name__)
def any_style(request: pytest.FixtureRequest) -> Tokenizer:
    style: Callable[[], tokenizers.Tokenizer] = request.param
    return made(style())


@pytest.fixture(scope="module")
def chatty() -> tokenizers.Tokenizer:
    return byte_level()


def test_stream_equals_decode_for_random_texts(any_style: Tokenizer) -> None:
    draw = random.Random(1)
    for _ in range(400):
        ids = any_style.encode(random_text(draw))
        assert "".join(pieces(any_style, ids)) == any_style.decode(ids)


def test_stream_equals_decode_for_random_ids(any_style: Tokenizer) -> None:
    """Models do not only say valid text: half characters, special tokens, ids of padding rows."""
    draw = random.Random(2)
    for _ in range(1500):
        ids = [draw.randrange(any_style.vocab_size + 3) for _ in range(draw.randrange(14))]
        for skip in (True, False):
            assert "".join(pieces(any_style, ids, skip)) == any_style.decode(ids, skip), ids


def test_stream_equals_decode_for_random_bytes() -> None:
    """Runs of byte-fallback tokens, broken ones among them, beside plain and special tokens."""
    tokenizer = made(byte_fallback())
    alphabet = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in "é日😀a".encode() + b"\xff"]
    alphabet += [tokenizer.token_id(token) for token in ("▁", "e", "</s>", "<unk>")]
    known = [token_id for token_id in alphabet if token_id is not None]
    assert len(known) == len(alphabet)
    draw = random.Random(3)
    for _ in range(4000):
        ids = draw.choices(known, k=draw.randrange(10))
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids), ids


@pytest.mark.parametrize("style", [byte_level, byte_fallback, nested_byte_level])
def test_no_push_returns_a_broken_character(style: Any) -> None:
    tokenizer = made(style())
    for text in ("日本語 😀 👩‍👩‍👧 déjà vu", "a 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 x"):
        parts = pieces(tokenizer, tokenizer.encode(text))
        assert "".join(parts) == text
        assert not any("\ufffd" in part for part in parts)
        assert sum(bool(part) for part in parts) > 2, "the text arrives in pieces"


@pytest.mark.parametrize("style", [byte_level, byte_fallback])
def test_a_character_cut_off_at_the_end_is_what_decode_says(style: Any) -> None:
    tokenizer = made(style())
    ids = tokenizer.encode("fin 𝔘")[:-1]
    parts = pieces(tokenizer, ids)
    assert "\ufffd" in parts[-1]
    assert "".join(parts) == tokenizer.decode(ids)


def test_a_space_at_the_start_of_a_word_is_not_lost() -> None:
    tokenizer = made(byte_fallback())
    ids = tokenizer.encode("Hello world")
    assert "".join(pieces(tokenizer, ids)) == "Hello world"
    # With the special token skipped, the word after it still stands inside the text.
    special = [ids[0], *ids[1:3], 2, *tokenizer.encode("world", add_special_tokens=False)]
    assert "".join(pieces(tokenizer, special)) == tokenizer.decode(special)


def test_a_decoder_that_takes_text_back_is_refused(chatty: tokenizers.Tokenizer) -> None:
    core = byte_level()
    core.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 0, 1)])
    with pytest.raises(TokenizerError, match="strips text at the end"):
        made(core).stream()


@pytest.mark.alone
def test_stream_costs_the_same_for_every_token(any_style: Tokenizer) -> None:
    ids = (any_style.encode(TEXT) * 40)[:6000]
    stream = any_style.stream()
    times = []
    for token_id in ids:
        start = time.thread_time()
        stream.push(token_id)
        times.append(time.thread_time() - start)
    early, late = sorted(times[500:1500])[500], sorted(times[-1000:])[500]
    assert late < 4 * early + 50e-6
