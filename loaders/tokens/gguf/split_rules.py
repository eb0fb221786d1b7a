"""How vocabularies split text before merges, by the name that a GGUF file has for it (`tokenizer.ggml.pre`).

A file says a name alone. The regular expressions stand in the tokenizer.json that the model was trained with, and are
given here in the dialect of the `tokenizers` library. Several of one name are applied in turn, each to the pieces of
the one before; what an expression does not match is a piece too.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from ....errors import TokenizerError

DEFAULT = "default"  # what files from before there were names are read with


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """patterns: regular expressions, in turn. whole_words: a piece that is a token is taken as it is, not merged. bos:
    text begins with BOS unless the file says otherwise. composed: text is brought into NFC. spaced: tokens are plain
    text with U+2581 for a space, not bytes."""

    patterns: tuple[str, ...] = ()
    whole_words: bool = False
    bos: bool = False
    composed: bool = False
    spaced: bool = False


def _letters(ranges: str) -> str:
    """What stands in a character class for code points: several of the ranges look alike, or are not assigned."""
    points = [[chr(int(point, 16)) for point in part.split("-")] for part in ranges.split()]
    return "".join("-".join(part) for part in points)


_SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_DIGIT, _THREE_DIGITS = r"\p{N}", r"\p{N}{1,3}"
_THREES_FROM_THE_RIGHT = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_SIGNS, _SIGNS_OR_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LINES = r"[^\n]+|[\n]+"
_KANJI_AND_KANA = f"[{_letters('4E00-9FA5 3040-309F 30A0-30FF')}]+"


def _cased(suffix: str = "", without: str = "") -> str:
    """Words that end where a large letter follows a small one. without: letters that belong to none of them."""
    first = r"[^\r\n\p{L}\p{N}]?"
    large = rf"[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{without}]"
    small = rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{without}]"
    return f"{first}{large}*{small}+{suffix}|{first}{large}+{small}*{suffix}"


def _any_of(*choices: str) -> str:
    return "|".join(choices)


# Of GPT-2, and what later ones made of it.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = _any_of(_SUFFIX, _WORD, _THREE_DIGITS, _SIGNS, _SPACES)
_QWEN2 = _any_of(_SUFFIX, _WORD, _DIGIT, _SIGNS, _SPACES)
_QWEN35 = _any_of(
    _SUFFIX, r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", _DIGIT, r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", _SPACES
)  # fmt: skip
_GPT4O = _any_of(_cased(_SUFFIX + "?"), _THREE_DIGITS, _SIGNS_OR_SLASH, _SPACES)
_TEKKEN = _any_of(_cased(), _DIGIT, _SIGNS_OR_SLASH, _SPACES)
_KIMI = _any_of(r"\p{Han}+", _cased(_SUFFIX + "?", r"&&[^\p{Han}]"), _THREE_DIGITS, _SIGNS, _SPACES)
_YOUTU = _any_of(_cased(_SUFFIX + "?"), _DIGIT, _SIGNS_OR_SLASH, _SPACES)
_SEED = _any_of(_SUFFIX, _WORD, _DIGIT, r" ?[^\s\p{L}\p{N}\r\n]+", _SPACES)
_MINICPM5 = _any_of(_SUFFIX, _WORD, r"\p{N}+", _SIGNS, _SPACES)
_EXAONE_MOE = _any_of(
    _SUFFIX, r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+", _DIGIT, r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
    _SPACES,
)  # fmt: skip
_JAIS2 = _any_of(
    _SUFFIX, _WORD, _THREE_DIGITS, _SIGNS, r"\s*[\r\n]+", *(rf"\s{{{2**n}}}(?!\S)" for n in range(9, 1, -1)),
    r"\s{1,2}(?!\S)", r"\s",
)  # fmt: skip
_BLOOM = r" ?[^(\s|.,!?" + _letters("2026 3002 FF0C 3001 964 6D4 60C") + ")]+"
_FALCON_SIGNS = r"[\p{P}\$\+<=>\^~\|"
# Of DeepSeek: letters, signs and ideographs by code points in the first one, by their kind later.
_DEEPSEEK_CASED = _letters(
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1 "
    "3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A "
    "1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 "
    "1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 "
    "212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D "
    "A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 "
    "104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
_DEEPSEEK_SIGNS = _letters("21-2F 3A-7E FF01-FF0F FF1A-FF5E 2018-201F 3000-3002")
_DEEPSEEK_IDEOGRAPHS = f"[{_letters('4E00-9FA5 800-4E00 AC00-D7FF')}]+"
_DEEPSEEK_LLM = (
    "[\r\n]", rf"\s?[{_DEEPSEEK_CASED}]+", rf"\s?[{_DEEPSEEK_SIGNS}]+", r"\s+$", _DEEPSEEK_IDEOGRAPHS, r"\p{N}+",
)  # fmt: skip
_ASCII_SIGN_AND_WORD = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_WORDS_AND_SIGNS = (_ASCII_SIGN_AND_WORD, r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+")
_DEEPSEEK_V3 = (
    _THREE_DIGITS, _KANJI_AND_KANA, _any_of(*_WORDS_AND_SIGNS, r" ?[\p{P}\p{S}]+[\r\n]*", _SPACES),
)  # fmt: skip
_SPARK = (
    _THREE_DIGITS, _KANJI_AND_KANA,
    _any_of(*_WORDS_AND_SIGNS, r" ?[\p{P}\p{S}]+", r"[\r\n]|\s+(?!\S)|\s+"), _DIGIT,
)  # fmt: skip
_YOUTU_SCRIPTS = _any_of(
    f"[{_letters('AC00-D7A3 3131-318E')}]+",
    f"[{_letters('FF01 2026 201C 201D 2018 2019 2014 FF1A FF1B FF0C 3001-303F FE30-FE4F')}]+",
    f"[{_letters('3105-312F')}]+", _KANJI_AND_KANA,
)  # fmt: skip
_AFMOE_SCRIPTS = _letters(
    "4E00-9FFF 3400-4DBF F900-FAFF 3040-309F 30A0-30FF FF65-FF9F 2F00-2FDF E40-E7F E80-EFF 1780-17FF 1000-109F "
    "AA60-AA7F A9E0-A9FF AC00-D7AF 1100-11FF"
)


def _rules() -> dict[str, SplitRule]:
    """Every name that is known."""
    llama3 = SplitRule(patterns=(_LLAMA3,), whole_words=True, bos=True)
    gpt2 = SplitRule(patterns=(_GPT2,))
    digits = SplitRule(patterns=(_DIGIT, _GPT2))
    like_qwen2 = SplitRule(patterns=(_QWEN2,))
    gpt4o = SplitRule(patterns=(_GPT4O,))
    threes = SplitRule(patterns=(r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O))
    deepseek_v3 = SplitRule(patterns=_DEEPSEEK_V3)
    named = {
        DEFAULT: SplitRule(patterns=(_FALCON_SIGNS + "]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
        "gpt-2 phi-2 gigachat a.x-4.0 mellum jais trillion granite-docling exaone4": gpt2,
        "olmo mpt": SplitRule(patterns=(_GPT2,), composed=True),
        "starcoder refact smollm codeshell exaone minerva-7b mellum2": digits,
        "command-r": SplitRule(patterns=(_DIGIT, _GPT2), composed=True),
        "falcon": SplitRule(patterns=(_FALCON_SIGNS + "`]+", _GPT2, "[0-9][0-9][0-9]")),
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2": llama3,
        "dbrx smaug-bpe chatglm-bpe": SplitRule(patterns=(_LLAMA3,)),
        "glm4 glm5": SplitRule(patterns=(_LLAMA3,), whole_words=True),
        "jais-2": SplitRule(patterns=(_JAIS2,)),
        "qwen2": SplitRule(patterns=(_QWEN2,), composed=True),
        "deepseek-r1-qwen stablelm2 hunyuan solar-open megrez kormo grok-2": like_qwen2,
        "bailingmoe bailingmoe2 llada-moe": like_qwen2,
        "ufakzeka": SplitRule(patterns=(_any_of(_WORD, _DIGIT, _SIGNS, _SPACES),)),
        "qwen35": SplitRule(patterns=(_QWEN35,)),
        "laguna": SplitRule(patterns=(_LINES, _QWEN2)),
        "minicpm5": SplitRule(patterns=(_THREE_DIGITS, _MINICPM5), whole_words=True),
        "gpt-4o llama4 kanana2 talkie minimax-m2": gpt4o,
        "tiny_aya cohere2moe": threes,
        "tekken": SplitRule(patterns=(_TEKKEN,), whole_words=True, bos=True),
        "kimi-k2": SplitRule(patterns=(_KIMI,)),
        "deepseek-llm": SplitRule(patterns=_DEEPSEEK_LLM),
        "deepseek-coder": SplitRule(patterns=("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_IDEOGRAPHS, _DIGIT)),
        "deepseek-v3 hunyuan-dense joyai-llm hy_v4": deepseek_v3,
        "spark2_5": SplitRule(patterns=_SPARK),
        "youtu": SplitRule(patterns=(_YOUTU_SCRIPTS, _YOUTU), whole_words=True),
        "afmoe": SplitRule(patterns=(_THREES_FROM_THE_RIGHT, f"[{_AFMOE_SCRIPTS}]+", _DEEPSEEK_V3[-1])),
        "seed-coder": SplitRule(patterns=(_SEED,)),
        "exaone-moe": SplitRule(patterns=(_EXAONE_MOE,)),
        "poro-chat bloom gpt3-finnish": SplitRule(patterns=(_BLOOM,)),
        "viking": SplitRule(patterns=(_BLOOM, _DIGIT)),
        "superbpe": SplitRule(patterns=(r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
        "gemma4 sarvam-moe": SplitRule(spaced=True),
    }
    return {name: rule for names, rule in named.items() for name in names.split()}


RULES = _rules()


def find(name: str, source: str) -> SplitRule:
    """The rule of a name; raises TokenizerError for one that is not known, with those that are like it."""
    if name in RULES:
        return RULES[name]
    near = difflib.get_close_matches(name, RULES, n=3, cutoff=0.4)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise TokenizerError(
        f"{source} splits text by rules called {name!r} (tokenizer.ggml.pre), which this version does not know{hint}; "
        f"docs/chat.md lists the {len(RULES)} it knows: use the model's directory with its tokenizer.json"
    )
