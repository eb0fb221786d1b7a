"""A tokenizer for the tiny checkpoints: one token a printable ASCII character, and four special ones for a chat."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

SPECIAL = ["<pad>", "<s>", "</s>", "<user>", "<model>"]
LETTERS = [chr(c) for c in range(32, 127)] + ["\n"]
TEMPLATE = (
    "{% for m in messages %}{{ '<user>' if m.role == 'user' else '<model>' if m.role == 'assistant' else '<s>' }}"
    "{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
)


def save(directory: Path, *, template: str | None = TEMPLATE, extra: int = 0) -> None:
    """Writes tokenizer.json and tokenizer_config.json; `extra` tokens more than the letters need."""
    names = [*SPECIAL, *LETTERS, *(f"extra{i}" for i in range(extra))]
    vocabulary = {name: i for i, name in enumerate(names)}
    core = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens(SPECIAL)
    core.save(str(directory / "tokenizer.json"))
    settings = {"eos_token": "</s>", "bos_token": "<s>", "pad_token": "<pad>"}
    if template is not None:
        settings["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
