"""Tokenizer files whose parts do not fit each other: one line when they are read or when text comes, nothing else."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import TokenizerError
from headrace.loaders.files.gguf_header import Texts
from headrace.loaders.tokens.gguf import sentence_piece
from headrace.loaders.tokens.tokenizer import Tokenizer

BPE: dict[str, Any] = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "": 3}, "merges": ["a b"]}
PARTS = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
NO_ID = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}], "pair": []}
STRANGE: dict[str, dict[str, Any]] = {
    "no unknown token": {"model": {**BPE, "unk_token": "<unk>"}},
    "words": {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<unk>"}},
    "pieces": {"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "<unk>",
                         "continuing_subword_prefix": "##", "max_input_chars_per_word": 10}},
    "unigram": {"model": {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]]}},
    "a panic while text is brought into form": {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}},
    "a panic while it is split": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "a panic while tokens are added": {"post_processor": {**NO_ID, "special_tokens": {}}},
    "a panic while it is decoded": {"decoder": {"type": "Strip", "content": " ", "start": 10**9, "stop": 10**9}},
}  # fmt: skip
MODEL, TOKENS = "tokenizer.ggml.model", ("<unk>", "<s>", "</s>", "a", "b", "ab", "\u2581")


def folder(tmp_path: Path, **parts: Any) -> Path:
    written = {"version": "1.0", "added_tokens": [], "model": BPE, **dict.fromkeys(PARTS), **parts}
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    return tmp_path


def there_and_back(tokenizer: Tokenizer) -> str:
    ids = tokenizer.encode("ab, \u00e9")
    stream = tokenizer.stream()
    streamed = "".join(map(stream.push, ids)) + stream.finish()
    assert streamed == tokenizer.decode(ids)
    return streamed


@pytest.mark.parametrize("parts", STRANGE.values(), ids=STRANGE)
def test_what_the_library_raises_is_one_line(parts: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(folder(tmp_path, **parts))
    with pytest.raises(TokenizerError) as found:
        tokenizer.decode([0, 3, *tokenizer.encode("ab, \u00e9")])
    assert str(tmp_path) in str(found.value)
    assert "\n" not in str(found.value)


SLOW = "(a+)+c|a"  # at each of n a's in a row it tries 2^n ways


def test_a_pattern_with_too_many_ways_is_an_error(tmp_path: Path) -> None:
    """The library gives up 10 million tries at one place."""
    split = {"type": "Split", "pattern": {"Regex": SLOW}, "behavior": "Isolated", "invert": False}
    tokenizer = Tokenizer.load(folder(tmp_path, pre_tokenizer=split))
    assert tokenizer.encode("aab") == [0, 0, 1]
    with pytest.raises(TokenizerError, match=r"cannot encode 'aaaaa.*retry-limit"):
        tokenizer.encode("a" * 60 + "b")


def test_a_text_that_takes_long_stops_no_other_thread(tmp_path: Path) -> None:
    """Some below that at many places take long; a server goes on meanwhile, and says what took it."""
    replace = {"type": "Replace", "pattern": {"Regex": SLOW}, "content": "a"}
    text = ("a" * 18 + "b") * 150
    model = {**BPE, "vocab": {**BPE["vocab"], text: 4}}
    tokenizer = Tokenizer.load(folder(tmp_path, normalizer=replace, decoder=replace, model=model))
    for slow in (lambda: tokenizer.encode(text), lambda: tokenizer.decode([4]), lambda: tokenizer.stream().push(4)):
        thread = threading.Thread(target=slow)
        thread.start()
        time.sleep(0.02)
        assert thread.is_alive(), "nothing else ran before it had ended"
        thread.join()


def test_text_that_replacements_make_endless_is_refused(tmp_path: Path) -> None:
    """The library would end the process, when there is no more memory."""
    step = {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 1000}
    many = {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [step] * 4}] * 2}
    with pytest.raises(TokenizerError, match=r"makes text 1e\+24 times as long"):
        Tokenizer.load(folder(tmp_path, normalizer=many))
    pattern = {"type": "Replace", "pattern": {"Regex": ""}, "content": "b" * 300}
    with pytest.raises(TokenizerError, match=r"the decoder of .* 301 times"):
        Tokenizer.load(folder(tmp_path, decoder=pattern))


def test_a_decoder_of_no_steps_streams(tmp_path: Path) -> None:
    """And one whose steps are sequences."""
    empty: dict[str, Any] = {"type": "Sequence", "decoders": []}
    nested = {"type": "Sequence", "decoders": [{"type": "Sequence", "decoders": [{"type": "Fuse"}]}, {"type": "Fuse"}]}
    for decoder in (empty, nested):
        assert there_and_back(Tokenizer.load(folder(tmp_path, decoder=decoder))).startswith("ab")


def metadata(kind: str, **more: Any) -> dict[str, Any]:
    tokens = {"tokens": texts(*TOKENS), "token_type": [2, 3, 3, 1, 1, 1, 1], "scores": [0.0, 0.0, 0.0, -1, -2, -3, -4]}
    return {MODEL: kind, **{f"tokenizer.ggml.{name}": value for name, value in {**tokens, **more}.items()}}


def texts(*those: str) -> Texts:
    encoded = [one.encode() for one in those]
    return Texts(b"".join(len(one).to_bytes(8, "little") + one for one in encoded), len(encoded), 8)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_kinds_of_tokens_are_whole_numbers(kind: str) -> None:
    assert there_and_back(Tokenizer.of_gguf(metadata(kind), "m.gguf"))
    for value in (float("nan"), float("inf"), 1.0):
        with pytest.raises(TokenizerError, match=r"m\.gguf has .* in tokenizer\.ggml\.token_type"):
            Tokenizer.of_gguf(metadata(kind, token_type=[value] * 7), "m.gguf")


@pytest.mark.parametrize("charsmap", [1.5, 3, True, "x", [0.5], [1, 2, 3], [-5] * 9, texts("a")], ids=repr)
def test_a_map_of_characters_that_is_none(charsmap: Any) -> None:
    with pytest.raises(TokenizerError, match=r"m\.gguf has .*precompiled_charsmap"):
        Tokenizer.of_gguf(metadata("t5", precompiled_charsmap=charsmap), "m.gguf")


def test_a_map_of_characters_that_ends_in_a_panic() -> None:
    tokenizer = Tokenizer.of_gguf(metadata("t5", precompiled_charsmap=[0] * 8), "m.gguf")
    with pytest.raises(TokenizerError, match=r"m\.gguf cannot encode"):
        tokenizer.encode("a")


def test_long_tokens_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is cut everywhere: one of a million characters would be a terabyte of copies."""
    began = time.process_time()
    with pytest.raises(TokenizerError, match="tokens of 1000000 characters"):
        Tokenizer.of_gguf(metadata("llama", tokens=texts(*TOKENS[:-1], "a" * 10**6)), "m.gguf")
    assert time.process_time() - began < 5
    monkeypatch.setattr(sentence_piece, "MOST_MERGES", 10)
    runs = texts(*TOKENS[:3], *("a" * count for count in range(1, 8)))
    many = dict(token_type=[2, 3, 3, *[1] * 7], scores=[0.0] * 10)
    with pytest.raises(TokenizerError, match="more than 10 pairs"):
        Tokenizer.of_gguf(metadata("llama", tokens=runs, **many), "m.gguf")
