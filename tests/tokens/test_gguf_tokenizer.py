"""Tokenizers from the metadata of GGUF files, against those that the vocabularies were taken from."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from vocabularies import SETTINGS, TEXT, byte_fallback, byte_level, metaspace_unigram, pieces, random_text
from vocabulary_metadata import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, metadata, of_bpe, texts

from headrace.errors import CheckpointError, TokenizerError
from headrace.loaders.tokens.tokenizer import Tokenizer

ODD = [
    "", " ", "  two  spaces ", " " * 40 + "x", "\n\n \n", "\t\x00\x07\x1b[2J", "😀👩‍👩‍👧🇫🇷", "日本語の漢字",
    "e\u0301 \u200d", "\ufffd\u2581", "</s> <s>a", "<|im_start|>user\n日本 tool call", "\u00a0\u3000", TEXT,
]  # fmt: skip


def texts_to_try(count: int = 300) -> list[str]:
    draw = random.Random(3)
    return [*ODD, *(random_text(draw) for _ in range(count))]


def agree(ours: Tokenizer, core: tokenizers.Tokenizer) -> None:
    """The same ids and the same text, at once and token by token."""
    for text in texts_to_try():
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == core.encode(text, add_special_tokens=False).ids, text
        assert ours.decode(ids, False) == core.decode(ids, skip_special_tokens=False)
        assert "".join(pieces(ours, ids)) == ours.decode(ids)


# Byte-level


def test_byte_level_is_what_the_vocabulary_came_from() -> None:
    core = byte_level()
    agree(Tokenizer.of_gguf(of_bpe(core, pre="gpt-2"), "here"), core)


def test_byte_level_gives_back_every_text() -> None:
    ours = Tokenizer.of_gguf(of_bpe(byte_level(), pre="llama-bpe"), "here")
    for text in texts_to_try():
        assert ours.decode(ours.encode(text, False), skip_special_tokens=False) == text


def test_half_characters_wait_for_the_rest() -> None:
    ours = Tokenizer.of_gguf(of_bpe(byte_level(), pre="gpt-2"), "here")
    letters = ours.encode("\U00010348", add_special_tokens=False)  # four bytes that nothing was merged of
    assert len(letters) == 4
    assert pieces(ours, letters) == ["", "", "", "\U00010348", ""]
    assert pieces(ours, [*letters[:2], *ours.encode("a", False)]) == ["", "", "\ufffda", ""]


def test_a_piece_that_is_a_token_is_taken_whole_where_the_name_says_so() -> None:
    alphabet = dict.fromkeys(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), NORMAL)
    tokens = {**alphabet, "ab": NORMAL, "abc": NORMAL}
    values = metadata("gpt2", tokens, merges=["a b"])
    whole, merged = (Tokenizer.of_gguf({**values, "tokenizer.ggml.pre": name}, "here") for name in ("glm4", "qwen2"))
    assert [whole.encode("abc"), merged.encode("abc")] == [[257], [256, alphabet_id(tokens, "c")]]


def alphabet_id(tokens: dict[str, int], text: str) -> int:
    return list(tokens).index(text)


def test_qwen2_text_is_composed_and_others_is_not() -> None:
    values = of_bpe(byte_level())
    composed, plain = (Tokenizer.of_gguf({**values, "tokenizer.ggml.pre": n}, "here") for n in ("qwen2", "llama-bpe"))
    assert composed.encode("e\u0301") == composed.encode("é") == plain.encode("é", False)
    assert plain.encode("e\u0301", False) != plain.encode("é", False)


def test_a_letter_that_was_added_is_text_and_no_byte() -> None:
    """DeepSeek's vocabularies have "ü" for a token, and in the byte alphabet "ü" is byte FC."""
    core = byte_level()
    core.add_tokens(["ü", "ÿ"])
    ours = Tokenizer.of_gguf(of_bpe(core, pre="deepseek-llm"), "here")
    ids = ours.encode("Führer ÿ日", add_special_tokens=False)
    assert core.token_to_id("ü") in ids
    assert ours.decode(ids) == "".join(pieces(ours, ids)) == "Führer ÿ日"
    for text in texts_to_try(100):
        ids = ours.encode(text, add_special_tokens=False)
        assert "".join(pieces(ours, ids, skip=False)) == ours.decode(ids, False) == text


def test_gemma4_merges_plain_text() -> None:
    """Merges on text with U+2581 for a space; what is no token is bytes, and nothing is put in front."""
    tokens = {"<pad>": CONTROL, "<eos>": CONTROL, "<bos>": CONTROL, "<unk>": UNKNOWN, "\n": NORMAL, "\n\n": NORMAL,
              "\u2581": NORMAL, "a": NORMAL, "b": NORMAL, "\u2581a": NORMAL, "<turn|>": CONTROL,
              **{f"<0x{byte:02X}>": BYTE for byte in range(256)}}  # fmt: skip
    values = metadata(
        "gemma4", tokens, merges=["\n \n", "\u2581 a"], bos_token_id=2, eos_token_id=1, unknown_token_id=3
    )
    ours = Tokenizer.of_gguf(values, "here")
    names = lambda text, special=False: [list(tokens)[n] for n in ours.encode(text, special)]  # noqa: E731
    assert names("a ab\n\nb") == ["a", "\u2581a", "b", "\n\n", "b"]
    assert names("é", True) == ["<bos>", "<0xC3>", "<0xA9>"]
    assert ours.decode(ours.encode(" a\n\né 😀")) == " a\n\né 😀"
    assert ours.eos_ids == (1, 10)


# SentencePiece


def best_first(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's rule: join the neighbours that make the token of the highest score, the first of equals."""
    parts = list(text)
    while True:
        pairs = [(scores[a + b], -n) for n, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
        if not pairs:
            return parts
        n = -max(pairs)[1]
        parts[n : n + 2] = [parts[n] + parts[n + 1]]


def sentence_piece(text: str, scores: dict[str, float], ids: dict[str, int]) -> list[int]:
    found = []
    for part in best_first("\u2581" * bool(text) + text.replace(" ", "\u2581"), scores):
        found += [ids[part]] if part in scores else [ids[f"<0x{byte:02X}>"] for byte in part.encode()]
    return found


CORE = byte_fallback()  # each training gives another one


@pytest.fixture(scope="module")
def spoken() -> dict[str, Any]:
    return of_bpe(CORE, "llama", unknown_token_id=0)


def test_scores_merge_as_sentence_piece_does(spoken: dict[str, Any]) -> None:
    ours = Tokenizer.of_gguf(spoken, "here")
    tokens, kinds = [*spoken["tokenizer.ggml.tokens"]], spoken["tokenizer.ggml.token_type"]
    ids = {text: number for number, text in enumerate(tokens)}
    scores = {t: s for t, s, k in zip(tokens, spoken["tokenizer.ggml.scores"], kinds, strict=True) if k == NORMAL}
    for text in texts_to_try():
        if not any(special in text for special in ("</s>", "<s>", "<|im_start|>")):
            assert ours.encode(text, add_special_tokens=False) == sentence_piece(text, scores, ids), text


@pytest.mark.parametrize("seed", range(8))
def test_scores_of_any_order_merge_as_sentence_piece_does(seed: int) -> None:
    """Vocabularies in which longer tokens can be better than their parts, over few letters so that pairs overlap."""
    draw = random.Random(seed)
    words = sorted({"".join(draw.sample("abcd\u2581", k=draw.randint(2, 5))) for _ in range(80)})
    tokens = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL, **dict.fromkeys(["\u2581", *"abcd", *words], NORMAL)}
    scores = dict(zip([*tokens], map(float, draw.sample(range(-500, 0), len(tokens))), strict=True))
    ours = Tokenizer.of_gguf(metadata("llama", tokens, scores=[*scores.values()], add_bos_token=False), "here")
    ids = {text: number for number, text in enumerate(tokens)}
    scores = {text: score for text, score in scores.items() if tokens[text] == NORMAL}
    for _ in range(300):
        text = "".join(draw.choices("abcd ", k=draw.randint(1, 16)))
        assert ours.encode(text) == sentence_piece(text, scores, ids), text


def test_sentence_piece_text_comes_back(spoken: dict[str, Any]) -> None:
    ours = Tokenizer.of_gguf(spoken, "here")
    for text in texts_to_try():
        ids = ours.encode(text)
        assert ids[0] == 1, "BOS without being asked for"
        assert ours.decode(ids, False) == CORE.decode(ids, skip_special_tokens=False)
        assert "".join(pieces(ours, ids)) == ours.decode(ids)


def test_the_space_in_front_can_be_off(spoken: dict[str, Any]) -> None:
    ours = Tokenizer.of_gguf({**spoken, "tokenizer.ggml.add_space_prefix": False}, "here")
    text = " the wheel"
    ids = ours.encode(text)
    assert ours.decode(ids) == text
    assert ids == Tokenizer.of_gguf(spoken, "here").encode(text.strip())


def test_text_behind_a_special_token_begins_anew(spoken: dict[str, Any]) -> None:
    ours = Tokenizer.of_gguf(spoken, "here")
    assert ours.encode("wheel</s>wheel", False) == [*ours.encode("wheel", False), 2, *ours.encode("wheel", False)]


@pytest.mark.parametrize(("arch", "swallowed"), [("phimoe", True), ("phi3", True), ("llama", False)])
def test_phi3_swallows_spaces_behind_special_tokens(spoken: dict[str, Any], arch: str, swallowed: bool) -> None:
    ours = Tokenizer.of_gguf({**spoken, "general.architecture": arch}, "here")
    same = ours.encode("<|im_end|>\n wheel", False) == ours.encode("<|im_end|>wheel", False)
    assert same == swallowed
    assert ours.encode("<s> wheel", False) != ours.encode("<s>wheel", False)


def test_without_scores_there_is_no_order(spoken: dict[str, Any]) -> None:
    with pytest.raises(TokenizerError, match=r"no tokenizer\.ggml\.scores"):
        Tokenizer.of_gguf({k: v for k, v in spoken.items() if "scores" not in k}, "here")


def test_unigram_is_what_the_vocabulary_came_from() -> None:
    core = metaspace_unigram()
    scores = dict(json.loads(core.to_str())["model"]["vocab"])
    kinds = {text: UNKNOWN if text == "<unk>" else CONTROL if text.startswith("<") else NORMAL for text in scores}
    values = metadata(
        "t5", kinds, scores=[*scores.values()], unknown_token_id=0, eos_token_id=2, padding_token_id=0,
        add_space_prefix=True,
    )  # fmt: skip
    ours = Tokenizer.of_gguf(values, "here")
    for text in ("The wheel turns as fast", "water arrives. Hello", "日本語 wheel", "naïve  café "):
        ids = ours.encode(text)
        assert ids == [*core.encode(text).ids, 2], "EOS behind the text, as T5 has it"


# Special tokens


def test_special_and_added_tokens_are_found_in_text_and_shown_or_not() -> None:
    ours = Tokenizer.of_gguf(of_bpe(byte_level(), pre="gpt-2"), "here")
    ids = ours.encode("<|im_start|>日本<|im_end|>", add_special_tokens=False)
    assert len(ids) == 3
    assert ours.decode(ids) == "日本"
    assert ours.decode(ids, skip_special_tokens=False) == "<|im_start|>日本<|im_end|>"
    assert ours.is_special("<|im_end|>")
    assert not ours.is_special("日本")


def test_unused_tokens_and_bytes_are_no_text() -> None:
    tokens = {"<unk>": UNKNOWN, "a": NORMAL, "<0x61>": BYTE, "[PAD3]": UNUSED, "[": NORMAL, "<t>": USER_DEFINED}
    values = metadata("llama", tokens, scores=[0.0] * 6, add_bos_token=False, bos_token_id=0, eos_token_id=0)
    ours = Tokenizer.of_gguf(values, "here")
    assert 2 not in ours.encode("<0x61>", False)
    assert 3 not in ours.encode("[PAD3]", False)
    assert ours.encode("a<t>", False)[-1] == 5
    assert ours.vocab_size == 6


def test_the_file_says_whether_text_gets_bos_and_eos() -> None:
    values = of_bpe(byte_level(), pre="gpt-2")
    flags = [(None, None), (True, None), (False, None), (True, True), (False, True)]
    given = [{f"tokenizer.ggml.add_{n}_token": v for n, v in zip(("bos", "eos"), pair, strict=True)} for pair in flags]
    ends = [Tokenizer.of_gguf({**values, **one}, "here").encode("a") for one in given]
    assert [(ids[0] == 1, ids[-1] == 2) for ids in ends] == [
        (False, False), (True, False), (False, False), (True, True), (False, True),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "bos"), [("llama-bpe", True), ("tekken", True), ("qwen2", False), ("dbrx", False)])
def test_some_names_mean_bos_unless_the_file_says_otherwise(name: str, bos: bool) -> None:
    values = of_bpe(byte_level(), pre=name)
    assert (Tokenizer.of_gguf(values, "here").encode("a")[0] == 1) == bos
    silent = {**values, "tokenizer.ggml.add_bos_token": False}
    assert Tokenizer.of_gguf(silent, "here").encode("a")[0] != 1
    assert Tokenizer.of_gguf(values, "here").has_two_starts([1, 1, 5])


def test_bos_that_is_asked_for_and_not_named_is_refused() -> None:
    values = {k: v for k, v in of_bpe(byte_level(), pre="llama-bpe").items() if "bos" not in k}
    assert Tokenizer.of_gguf(values, "here").encode("a")
    with pytest.raises(TokenizerError, match=r"gets BOS, and not which token .*bos_token_id"):
        Tokenizer.of_gguf({**values, "tokenizer.ggml.add_bos_token": True}, "here")


def test_ends_are_those_that_the_file_names_and_those_that_always_are() -> None:
    values = of_bpe(byte_level(), pre="gpt-2")
    assert Tokenizer.of_gguf(values, "here").eos_ids == (2, 4), "<|im_end|> is a control token"
    named = {**values, "tokenizer.ggml.eot_token_id": 3, "tokenizer.ggml.eom_token_id": 10}
    assert Tokenizer.of_gguf(named, "here").eos_ids == (2, 3, 10, 4)


def test_gpt_oss_goes_on_behind_a_part_of_its_answer() -> None:
    control = ("<|endoftext|>", "<|return|>", "<|end|>", "<|call|>")
    values = metadata("llama", {"a": NORMAL, **dict.fromkeys(control, CONTROL)}, scores=[0.0] * 5, eos_token_id=2)
    values |= {"tokenizer.ggml.add_bos_token": False}
    assert Tokenizer.of_gguf(values, "here").eos_ids == (2, 1, 4)


def test_an_end_that_is_plain_text_is_none() -> None:
    """Gemma 4 and Qwen have "</s>" as a piece of text."""
    values = metadata("llama", {"<unk>": UNKNOWN, "</s>": NORMAL, "a": NORMAL}, scores=[0.0] * 3, eos_token_id=2)
    assert Tokenizer.of_gguf({**values, "tokenizer.ggml.add_bos_token": False}, "here").eos_ids == (2,)


@pytest.mark.parametrize("nothing", [-1, 2**32 - 1])
def test_an_id_can_say_that_there_is_none(nothing: int) -> None:
    values = of_bpe(byte_level(), pre="gpt-2", padding_token_id=nothing)
    assert "pad_token" not in Tokenizer.of_gguf(values, "here").special_texts


# Chat templates


def test_chat_templates_come_with_their_names_and_the_tokens_they_spell() -> None:
    own = {
        "tokenizer.chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
        "tokenizer.chat_template.tool_use": "{{ tools | length }}",
        "tokenizer.chat_templates": texts(["tool_use"]),
    }
    ours = Tokenizer.of_gguf({**of_bpe(byte_level(), pre="gpt-2"), **own}, "here")
    chat = [{"role": "user", "content": "a"}]
    assert ours.render_chat(chat) == "<s>a</s>"
    assert ours.encode(ours.render_chat(chat), False)[0] == 1
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert ours.render_chat(chat, tools=[tool]) == "1"
    assert sorted(ours.templates) == ["default", "tool_use"]


def test_a_file_without_a_template_says_where_one_would_be() -> None:
    with pytest.raises(TokenizerError, match=r"no chat template .*GGUF"):
        Tokenizer.of_gguf(of_bpe(byte_level(), pre="gpt-2"), "here").render_chat([{"role": "user", "content": "a"}])


# What cannot be read


@pytest.mark.parametrize("kind", ["bert", "rwkv", "plamo2", "hybriddna", "whitespace", "new", 7])
def test_other_kinds_are_refused_by_name(kind: Any) -> None:
    with pytest.raises(TokenizerError, match=rf"of the kind {kind!r}.*; gpt2, gemma4, llama, t5 can be read"):
        Tokenizer.of_gguf(metadata(kind, {"a": NORMAL}), "here")


@pytest.mark.parametrize("values", [{}, {"tokenizer.ggml.model": "none"}, {"tokenizer.ggml.model": "no_vocab"}])
def test_a_file_without_a_tokenizer_is_called_that(values: dict[str, Any]) -> None:
    with pytest.raises(TokenizerError, match="holds no tokenizer"):
        Tokenizer.of_gguf(values, "here")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("tokens", 5, "has 5 for tokenizer.ggml.tokens"),
        ("tokens", texts([]), "no tokens"),
        ("tokens", texts(["a", "b", "a"]), "'a' for the tokens 0 and 2"),
        ("token_type", [1, 1], "has 2 numbers for tokenizer.ggml.token_type"),
        ("token_type", 1, "has 1 for tokenizer.ggml.token_type"),
        ("merges", texts(["ab"]), "has 'ab' for a merge"),
        ("merges", texts(["a wheel"]), "merges that do not fit its tokens"),
        ("merges", None, "no tokenizer.ggml.merges"),
        ("eos_token_id", 10**6, "has 1000000 for tokenizer.ggml.eos_token_id"),
        ("eos_token_id", "2", "has '2' for tokenizer.ggml.eos_token_id"),
    ],
)
def test_damaged_metadata_are_named(key: str, value: Any, said: str) -> None:
    values = {**of_bpe(byte_level(), pre="gpt-2"), f"tokenizer.ggml.{key}": value}
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.of_gguf(values, "here")
    assert said in str(caught.value)


def test_tokens_without_text_and_more_numbers_than_tokens_are_no_damage() -> None:
    values = metadata("llama", {"<unk>": UNKNOWN, "": NORMAL, "a": NORMAL}, scores=[0.0] * 9, add_bos_token=False)
    assert Tokenizer.of_gguf(values, "here").encode("a", False)


# Files


def write(path: Path, values: dict[str, Any], split: tuple[int, int] | None = None) -> Path:
    """A GGUF file of these metadata by the gguf library."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "qwen3moe")
    for key, value in values.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_array(key, [*value])
    if split:
        writer.add_uint16("split.no", split[0])
        writer.add_uint16("split.count", split[1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", ["model.gguf", "blob-without-a-suffix"])
def test_load_takes_a_gguf_file(tmp_path: Path, name: str) -> None:
    values = of_bpe(byte_level(), pre="gpt-2")
    template = {"tokenizer.chat_template": "{{ messages[0].content }}"}
    ours = Tokenizer.load(write(tmp_path / name, {**values, **template}))
    assert ours.source == str(tmp_path / name)
    assert ours.encode(TEXT) == Tokenizer.of_gguf(values, "here").encode(TEXT)
    assert ours.render_chat([{"role": "user", "content": "a"}]) == "a"


def test_any_part_of_a_split_model_has_its_tokenizer(tmp_path: Path) -> None:
    values = of_bpe(byte_fallback(), "llama", unknown_token_id=0)
    first = write(tmp_path / "m-00001-of-00002.gguf", values, (0, 2))
    second = write(tmp_path / "m-00002-of-00002.gguf", {}, (1, 2))
    assert Tokenizer.load(second).encode(TEXT) == Tokenizer.of_gguf(values, "here").encode(TEXT)
    assert Tokenizer.load(first).encode(TEXT) == Tokenizer.of_gguf(values, "here").encode(TEXT)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", of_bpe(byte_level(), pre="gpt-2"))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="ends inside its header"):
        Tokenizer.load(path)


def test_transformers_reads_the_same_file_alike(tmp_path: Path) -> None:
    """It leaves out added tokens that are no ASCII, as byte-level ones would be."""
    transformers = pytest.importorskip("transformers")
    values = of_bpe(byte_level(), pre="llama-bpe", add_bos_token=False)
    path = write(tmp_path / "model.gguf", {**values, "qwen3moe.block_count": 1})
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path), gguf_file=path.name)
    ours = Tokenizer.load(path)
    for text in [text for text in texts_to_try() if "日本" not in text]:
        assert ours.encode(text, False) == theirs.encode(text, add_special_tokens=False), text


def test_settings_of_a_file_are_those_of_a_directory() -> None:
    ours = Tokenizer.of_gguf(of_bpe(byte_level(), pre="gpt-2"), "here")
    assert ours.special_texts == {"bos_token": SETTINGS["bos_token"], "eos_token": "</s>"}
