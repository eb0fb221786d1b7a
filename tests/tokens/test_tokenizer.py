"""The tokenizer against the libraries it stands in for, `tokenizers` and transformers: loading, encoding, decoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from vocabularies import SETTINGS, TEXT, byte_fallback, byte_level, made, save

from headrace.errors import TokenizerError
from headrace.loaders.tokens.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def chatty() -> tokenizers.Tokenizer:
    return byte_level()


# Loading


def test_load_reads_the_files_of_a_directory(tmp_path: Path) -> None:
    core = byte_fallback()
    tokenizer = Tokenizer.load(save(tmp_path / "m", core))
    assert tokenizer.encode("Hello, world") == core.encode("Hello, world").ids
    assert tokenizer.vocab_size == max(core.get_vocab().values()) + 1
    assert tokenizer.token_id("</s>") == 2
    assert tokenizer.token_id("no such token") is None
    assert tokenizer.eos_ids == (2,)


def test_vocab_size_counts_added_tokens_and_gaps(chatty: tokenizers.Tokenizer) -> None:
    data = json.loads(chatty.to_str())
    plain_tokens = len(data["model"]["vocab"])
    tokenizer = made(chatty)
    assert tokenizer.vocab_size == plain_tokens + 2
    vocab = data["model"]["vocab"]
    vocab["highest"] = plain_tokens + 500
    assert made(tokenizers.Tokenizer.from_str(json.dumps(data))).vocab_size == plain_tokens + 501


def test_missing_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json: copy the tokenizer files"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("names", "named"),
    [(["tokenizer.model"], "only tokenizer.model:"), (["vocab.json", "merges.txt"], "only vocab.json and merges.txt:")],
)
def test_older_formats_are_named_with_the_conversion(tmp_path: Path, names: list[str], named: str) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.load(tmp_path)
    assert named in str(caught.value)
    assert "save_pretrained" in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", ["{ half", "[]"])
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: str) -> None:
    save(tmp_path, byte_level())
    (tmp_path / name).write_text(content)
    with pytest.raises(TokenizerError, match=f"{name}.*fetch the file again"):
        Tokenizer.load(tmp_path)


def test_a_template_that_is_not_text_is_named(tmp_path: Path) -> None:
    save(tmp_path, byte_level())
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(TokenizerError, match=r"chat_template\.jinja cannot be read"):
        Tokenizer.load(tmp_path)


def test_settings_are_optional(tmp_path: Path) -> None:
    save(tmp_path, byte_level())
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos_ids == ()
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_end_of_text_comes_from_the_older_map_too(tmp_path: Path) -> None:
    save(tmp_path, byte_level(), {})
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    assert Tokenizer.load(tmp_path).eos_ids == (4,)


def test_an_end_of_text_without_a_token_is_refused(chatty: tokenizers.Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"'<eot>' as eos_token.*do not belong together"):
        made(chatty, eos_token="<eot>")


def test_padding_and_truncation_of_the_training_are_ignored(tmp_path: Path) -> None:
    core = byte_level()
    core.enable_truncation(5)
    core.enable_padding(length=200)
    tokenizer = Tokenizer.load(save(tmp_path, core))
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_check_fits(chatty: tokenizers.Tokenizer) -> None:
    tokenizer = made(chatty)
    tokenizer.check_fits(tokenizer.vocab_size)
    tokenizer.check_fits(tokenizer.vocab_size + 64)
    with pytest.raises(TokenizerError) as caught:
        tokenizer.check_fits(tokenizer.vocab_size - 1)
    assert f"has {tokenizer.vocab_size} tokens" in str(caught.value)
    assert f"only {tokenizer.vocab_size - 1} rows" in str(caught.value)
    assert "files that came with the model" in str(caught.value)


# Encoding and decoding


@pytest.mark.parametrize("style", [byte_level, byte_fallback])
@pytest.mark.parametrize("settings", [{}, {"add_bos_token": False}])
def test_encode_and_decode_agree_with_transformers(tmp_path: Path, style: Any, settings: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    directory = save(tmp_path, style(), {**SETTINGS, **settings})
    ours, theirs = Tokenizer.load(directory), transformers.PreTrainedTokenizerFast.from_pretrained(directory)
    for text in ("", "Hello, world", "  two  spaces ", "日本 😀\n", "<s>already</s> there", TEXT):
        for special in (True, False):
            ids = ours.encode(text, add_special_tokens=special)
            assert ids == theirs.encode(text, add_special_tokens=special), (text, special)
            for skip in (True, False):
                assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_bos_follows_the_settings() -> None:
    silent, adding = byte_level(), byte_fallback()
    assert made(silent).encode("a")[0] != 1
    assert made(silent, add_bos_token=True).encode("a")[0] == 1
    assert made(silent, add_bos_token=True).encode("a", add_special_tokens=False)[0] != 1
    assert made(adding).encode("a")[0] == 1
    assert made(adding, add_bos_token=True).encode("a").count(1) == 1
    assert made(adding, add_bos_token=False).encode("a")[0] == 1
    assert made(silent, add_bos_token=True).encode("<s>a").count(1) == 2, "a BOS in the text is text"


def test_a_token_that_the_settings_name_is_special() -> None:
    data = json.loads(byte_level().to_str())
    for token in data["added_tokens"]:
        token["special"] = False
    core = tokenizers.Tokenizer.from_str(json.dumps(data))
    size = core.get_vocab_size()
    tokenizer = made(core)
    ids = tokenizer.encode("a</s>")
    assert tokenizer.decode(ids) == "a"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "a</s>"
    assert core.get_vocab_size() == size


def test_broken_unicode_is_refused(chatty: tokenizers.Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="not valid unicode"):
        made(chatty).encode("a\ud800b")
