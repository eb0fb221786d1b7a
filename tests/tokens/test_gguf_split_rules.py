"""Where text is cut before merges, for every name that a GGUF can have for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Regex, pre_tokenizers
from vocabularies import TEXT, byte_level
from vocabulary_metadata import of_bpe

from headrace.errors import TokenizerError
from headrace.loaders.tokens.gguf import split_rules
from headrace.loaders.tokens.gguf.split_rules import RULES
from headrace.loaders.tokens.tokenizer import Tokenizer

SAMPLE = "I'll SAY 'twasn't: Año12345 e\u0301 漢字かな12abc!!  \n\n\tx=/y/\r\n  HTTPServer's  "
# Pieces of it, with line breaks as arrows. Held against the libraries that the names come from when they were written.
CUTS = {
    "default falcon": (
        "I·'·ll· SAY· ·'·twasn·'·t·:· Año·123·45· e·\u0301· 漢字かな·12·abc·!!·  ⏎⏎·⇥·x·=/·y·/·␍⏎ · HTTPServer·'·s·  "
    ),
    "gpt-2 phi-2 gigachat a.x-4.0 mellum jais trillion granite-docling exaone4 olmo mpt": (
        "I·'ll· SAY· '·twasn·'t·:· Año·12345· e·\u0301· 漢字かな·12·abc·!!·  ⏎⏎·⇥·x·=/·y·/·␍⏎ · HTTPServer·'s·  "
    ),
    "starcoder refact smollm codeshell exaone minerva-7b mellum2 command-r": (
        "I·'ll· SAY· '·twasn·'t·:· Año·1·2·3·4·5· e·\u0301· 漢字かな·1·2·abc·!!·  ⏎⏎·⇥·x·=/·y·/·␍⏎ · HTTPServer·'s·  "
    ),
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 dbrx smaug-bpe chatglm-bpe glm4 glm5 jais-2 "
    "minicpm5": (
        "I·'ll· SAY· '·twasn·'t·:· Año·123·45· e·\u0301· 漢字かな·12·abc·!!·  ⏎⏎·⇥x·=/·y·/␍⏎· · HTTPServer·'s·  "
    ),
    "qwen2 deepseek-r1-qwen stablelm2 hunyuan solar-open megrez kormo grok-2 ufakzeka bailingmoe bailingmoe2 "
    "llada-moe": (
        "I·'ll· SAY· '·twasn·'t·:· Año·1·2·3·4·5· e·\u0301· 漢字かな·1·2·abc·!!·  ⏎⏎·⇥x·=/·y·/␍⏎· · HTTPServer·'s·  "
    ),
    "qwen35 tekken": (
        "I·'ll· SAY· '·twasn·'t·:· Año·1·2·3·4·5· e\u0301· 漢字かな·1·2·abc·!!·  ⏎⏎·⇥x·=/·y·/␍⏎· · HTTPServer·'s·  "
    ),
    "laguna": (
        "I·'ll· SAY· '·twasn·'t·:· Año·1·2·3·4·5· e·\u0301· 漢字かな·1·2·abc·!!·  ·⏎⏎·⇥x·=/·y·/␍·⏎· · HTTPServer·'s·  "
    ),
    "gpt-4o llama4 kanana2 talkie minimax-m2": (
        "I'll· SAY· '·twasn't·:· Año·123·45· e\u0301· 漢字かな·12·abc·!!·  ⏎⏎·⇥x·=/·y·/␍⏎· · HTTPServer's·  "
    ),
    "tiny_aya cohere2moe": (
        "I'll· SAY· '·twasn't·:· Año·12·345· e\u0301· 漢字かな·12·abc·!!·  ⏎⏎·⇥x·=/·y·/␍⏎· · HTTPServer's·  "
    ),
    "kimi-k2": (
        "I'll· SAY· '·twasn't·:· Año·123·45· e\u0301· ·漢字·かな·12·abc·!!·  ⏎⏎·⇥x·=/·y·/␍⏎· · HTTPServer's·  "
    ),
    "deepseek-llm": (
        "I·'·ll· SAY· '·twasn·'·t·:· A·ñ·o·12345· e·\u0301 ·漢字かな·12·abc·!!·  "
        "·⏎·⏎·⇥x·=/·y·/·␍·⏎· · HTTPServer·'·s·  "
    ),
    "deepseek-coder": (
        "I·'·ll· SAY· '·twasn·'·t·:· Año·1·2·3·4·5· e·\u0301· ·漢字かな·1·2·abc·!!·  "
        "·⏎·⏎·⇥x·=·/·y·/·␍·⏎· · HTTPServer·'·s·  "
    ),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": (
        "I·'ll· SAY· '·twasn·'t·:· Año·123·45· e\u0301· ·漢字かな·12·abc·!!·  ⏎⏎·⇥x·=/·y·/␍⏎· · HTTPServer·'s·  "
    ),
    "spark2_5": (
        "I·'ll· SAY· '·twasn·'t·:· Año·1·2·3·4·5· e\u0301· ·漢字かな·1·2·abc·!!·  ⏎⏎·⇥x·=/·y·/·␍·⏎· · HTTPServer·'s·  "
    ),
    "youtu": (
        "I'll· SAY· '·twasn't·:· Año·1·2·3·4·5· e\u0301· ·漢字かな·1·2·abc·!!·  ⏎⏎·⇥x·=/·y·/␍⏎· · HTTPServer's·  "
    ),
    "afmoe": (
        "I·'ll· SAY· '·twasn·'t·:· Año·12·345· e\u0301· ·漢字かな·12·abc·!!·  ⏎⏎·⇥x·=/·y·/␍⏎· · HTTPServer·'s·  "
    ),
    "seed-coder": (
        "I·'ll· SAY· '·twasn·'t·:· Año·1·2·3·4·5· e·\u0301· 漢字かな·1·2·abc·!!·  ⏎⏎·⇥x·=/·y·/·␍⏎· · HTTPServer·'s·  "
    ),
    "exaone-moe": (
        "I·'ll· SAY· '·twasn·'t·:· Año·1·2·3·4·5· e\u0301 漢字かな·1·2·abc·!!·  ⏎⏎·⇥x·=/·y·/␍·⏎· · HTTPServer·'s·  "
    ),
    "poro-chat bloom gpt3-finnish": (
        "I'll· SAY· 'twasn't:· Año12345· e\u0301· 漢字かな12abc·!!  ⏎⏎⇥·x=/y/·␍⏎ · HTTPServer's·  "
    ),
    "viking": (
        "I'll· SAY· 'twasn't:· Año·1·2·3·4·5· e\u0301· 漢字かな·1·2·abc·!!  ⏎⏎⇥·x=/y/·␍⏎ · HTTPServer's·  "
    ),
    "superbpe": (
        "I'll SAY 'twasn't: Año·12·345· e\u0301 漢字かな·12·abc!!  ⏎⏎⇥x=/y/␍⏎  HTTPServer's  "
    ),
}  # fmt: skip
BY_NAME = {name: cuts for names, cuts in CUTS.items() for name in names.split()}


def pieces(name: str, text: str) -> list[str]:
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in RULES[name].patterns]
    return [piece for piece, _ in pre_tokenizers.Sequence(splits).pre_tokenize_str(text)]


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if not rule.spaced])
def test_text_is_cut_by_the_rules_of_every_name(name: str) -> None:
    shown = "·".join(pieces(name, SAMPLE)).translate(str.maketrans("\n\r\t", "⏎␍⇥"))
    assert shown == BY_NAME[name]


@pytest.mark.parametrize(
    ("name", "text", "cut"),
    [
        ("jais-2", "a      b", "a·    · · b"),
        ("llama3", "a      b", "a·     · b"),
        ("minicpm5", "12345 ٣٤٥٦", "123·45· ·٣٤٥·٦"),
        ("ufakzeka", "İstanbul'da 'da", "İstanbul·'da· '·da"),
        ("qwen2", "İstanbul'da 'da", "İstanbul·'d·a· '·da"),
        ("qwen2", "a\n\n\nb'LL", "a·\n\n\n·b·'LL"),
        ("gpt-4o", "aBCd नमस्ते/\n/", "a·BCd· नमस्ते·/\n/"),
        ("kimi-k2", "aBCd漢x/\n/", "a·BCd·漢·x·/\n·/"),
        ("afmoe", "1 12 1234 1234567", "1· ·12· ·1·234· ·1·234·567"),
        ("tiny_aya", "1234 1234x", "1·234· ·123·4·x"),
        ("falcon", "a``b 1234", "a·``·b· ·123·4"),
    ],
)
def test_where_names_with_like_rules_differ(name: str, text: str, cut: str) -> None:
    assert "·".join(pieces(name, text)) == cut


def test_pieces_are_those_of_transformers() -> None:
    mapping = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    every = "".join(map(chr, range(0x20, 0x600)))
    alone = [" ".join(every), "a".join(every), "1".join(every)]  # each character between others that rules tell apart
    texts = [TEXT, SAMPLE, "ǅ ʰ ſ 'ſ नमस्ते\n สวัสดี \u00a0x \u3000y ½²Ⅷ\u0085z \u200d\x07", every, *alone]
    checked = 0
    for name, pattern in mapping.GGUF_PRE_TOKENIZER_SPLITS.items():
        if name in RULES:
            theirs = pre_tokenizers.Split(Regex(pattern), "isolated")
            for text in texts:
                assert pieces(name, text) == [piece for piece, _ in theirs.pre_tokenize_str(text)], (name, text)
            checked += 1
    assert checked > 15


def test_an_unknown_name_is_refused_with_those_like_it() -> None:
    with pytest.raises(TokenizerError, match=r"here splits text by rules called 'qwen99' .*; nearest: qwen\d+, "):
        Tokenizer.of_gguf(of_bpe(byte_level(), pre="qwen99"), "here")


def test_a_file_without_a_name_is_read_by_the_default_and_says_so() -> None:
    silent = Tokenizer.of_gguf(of_bpe(byte_level()), "here")
    said = Tokenizer.of_gguf(of_bpe(byte_level(), pre=split_rules.DEFAULT), "here")
    assert said.notes == ()
    assert "tokenizer.ggml.pre" in silent.notes[0]
    assert silent.encode(TEXT) == said.encode(TEXT)


def test_docs_list_every_name() -> None:
    page = (Path(__file__).parents[2] / "docs" / "chat.md").read_text()
    assert [name for name in RULES if f"`{name}`" not in page] == []
