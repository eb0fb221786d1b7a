"""Vocabularies for tests, trained here, small, in the two styles that matter: byte-level (GPT-2, Qwen, DeepSeek) and
metaspace with byte fallback (Llama, Mixtral). No file comes from outside.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from headrace.loaders.tokens.tokenizer import Tokenizer

TEXT = (
    "The wheel turns as fast as the water arrives. Hello, world! naïve café, cafe\u0301, Ångström. "
    "def main():\n    return {'a': 1}\n日本語のテキスト、漢字とかな。 한국어 문장. Привет, мир! שלום "
    "emoji 😀 👩‍👩‍👧 🇫🇷 e\u0301 \u200d fin.\n\n"
)
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
SETTINGS = {
    "bos_token": "<s>",
    "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
    "unk_token": "<unk>",
}


def byte_level() -> tokenizers.Tokenizer:
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    core.train_from_iterator([TEXT] * 4, trainer)
    # Added tokens are spelled in plain text, not in the byte alphabet.
    core.add_tokens(["日本", "tool call"])
    return core


def ambiguous_byte_level() -> tokenizers.Tokenizer:
    """ "é" stands for a byte too, and the library reads this added token as that byte: broken, but so is decode."""
    core = byte_level()
    core.add_tokens(["é"])
    return core


def byte_fallback() -> tokenizers.Tokenizer:
    core = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL + bytes_, limit_alphabet=60, show_progress=False
    )
    core.train_from_iterator([TEXT] * 4, trainer)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(steps)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    # Training wants the byte tokens as special ones; in a real Llama file they are plain vocabulary.
    data = json.loads(core.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] not in bytes_]
    return tokenizers.Tokenizer.from_str(json.dumps(data))


def metaspace_unigram() -> tokenizers.Tokenizer:
    core = tokenizers.Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    core.train_from_iterator([TEXT] * 4, trainer)
    return core


def nested_byte_level() -> tokenizers.Tokenizer:
    core = byte_level()
    core.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    return core


def no_decoder() -> tokenizers.Tokenizer:
    core = metaspace_unigram()
    data = json.loads(core.to_str())
    data["decoder"] = None
    return tokenizers.Tokenizer.from_str(json.dumps(data))


STYLES = [byte_level, ambiguous_byte_level, byte_fallback, metaspace_unigram, nested_byte_level, no_decoder]


def save(directory: Path, core: tokenizers.Tokenizer, settings: dict[str, Any] | None = None) -> Path:
    directory.mkdir(exist_ok=True)
    core.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(SETTINGS if settings is None else settings))
    return directory


def made(core: tokenizers.Tokenizer, template: str | None = None, **settings: Any) -> Tokenizer:
    return Tokenizer(core, {**SETTINGS, **settings}, {} if template is None else {"default": template}, "here")


def pieces(tokenizer: Tokenizer, ids: list[int], skip: bool = True) -> list[str]:
    """What each token adds to the text, and the end of it."""
    stream = tokenizer.stream(skip)
    return [*map(stream.push, ids), stream.finish()]


def random_text(draw: random.Random) -> str:
    planes = [(0x20, 0x7F), (0x20, 0x2FF), (0x300, 0x36F), (0x3040, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]
    letters = [chr(draw.randint(*draw.choice(planes))) for _ in range(draw.randrange(12))]
    words = [
        draw.choice([" ", "  ", "\n", "😀", "👩‍👩‍👧", "日本", "é", "e\u0301", "hello", " world", "</s>"])
        for _ in range(6)
    ]
    mixed = letters + words
    draw.shuffle(mixed)
    return "".join(mixed)
