"""All that a GGUF says about text: the tokenizer, its special tokens, where an answer ends, chat templates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from ....errors import TokenizerError, brief
from ..template_files import DEFAULT as UNNAMED
from . import byte_level, sentence_piece, split_rules
from .vocabulary import AGAIN, CONTROL, UNKNOWN, USER_DEFINED, Vocabulary, read

TEMPLATE = "tokenizer.chat_template"
# What a file calls the tokens that a chat template may spell.
ROLES = {
    "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "sep_token": "seperator", "pad_token": "padding",
    "cls_token": "cls", "mask_token": "mask",
}  # fmt: skip
# Control tokens that end a text or a turn wherever they are. Files name one, seldom all that a model was trained with.
END_TEXTS = frozenset({
    "</s>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>",
    "<|call|>", "<|calls|>", "<|flush|>", "<end_of_turn>", "<turn|>", "<|tool_response>", "<eos>", "<EOT>", "[EOT]",
    "[EOS]", "[e~[", "<end_of_utterance>", "<\uff5cend\u2581of\u2581sentence\uff5c>",
})  # fmt: skip
# Models that end an answer with one of these go on behind <|end|>: it ends a part of the answer.
GOES_ON = {"<|return|>", "<|flush|>"}
# Their tokenizer swallows spaces and line breaks behind special tokens but these; a GGUF does not say so.
SWALLOWING = ("phi3", "phimoe")
PLAIN = {"<unk>", "<s>", "<|endoftext|>"}
OTHERS = {
    "bert": "WordPiece", "rwkv": "RWKV", "plamo2": "PLaMo-2", "hybriddna": "DNA", "whitespace": "words",
}  # fmt: skip

# A tokenizer, whether text begins with BOS where the file does not say so, and notes.
Made = tuple[Tokenizer, bool, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """settings: special tokens, as a tokenizer_config.json has them. templates: by name. ends: tokens that end a text.
    notes: what a user should know."""

    core: Tokenizer
    settings: Mapping[str, Any]
    templates: Mapping[str, str]
    ends: tuple[str, ...]
    notes: tuple[str, ...]


def parts_of(metadata: Mapping[str, Any], source: str) -> Parts:
    """The tokenizer of a model by its metadata. Raises TokenizerError if there is none, one of a kind that is not
    supported, or a damaged one."""
    make = _maker(metadata, source)
    vocabulary = read(metadata, source)
    core, bos, notes = make(vocabulary)
    _add_tokens(core, vocabulary)
    _add_ends(core, vocabulary, bos)
    settings = {name: text for name, role in ROLES.items() if (text := vocabulary.named(role)) is not None}
    return Parts(core=core, settings=settings, templates=_templates(metadata), ends=_ends(vocabulary), notes=notes)


def _maker(metadata: Mapping[str, Any], source: str) -> Callable[[Vocabulary], Made]:
    """What makes the tokenizer of a kind."""
    kind = metadata.get("tokenizer.ggml.model")
    makers: dict[str, Callable[[Vocabulary], Made]] = {
        "gpt2": _byte_level,
        "gemma4": lambda vocabulary: (byte_level.core_of(vocabulary, split_rules.RULES["gemma4"]), True, ()),
        "llama": lambda vocabulary: (sentence_piece.bpe(vocabulary), True, ()),
        "t5": lambda vocabulary: (sentence_piece.unigram(vocabulary), False, ()),
    }
    if kind is None or kind in ("none", "no_vocab"):
        raise TokenizerError(f"{source} holds no tokenizer: get a file of the model that does, or convert it again")
    if isinstance(kind, str) and kind in makers:
        return makers[kind]
    name = f" ({OTHERS[kind]})" if isinstance(kind, str) and kind in OTHERS else ""
    raise TokenizerError(
        f"{source} has a tokenizer of the kind {brief(kind)}{name}; {', '.join(makers)} can be read: use the model's "
        "directory with its tokenizer.json"
    )


def _byte_level(vocabulary: Vocabulary) -> Made:
    name = vocabulary.metadata.get("tokenizer.ggml.pre")
    rule = split_rules.find(split_rules.DEFAULT if name is None else str(name), vocabulary.source)
    if name is not None:
        return byte_level.core_of(vocabulary, rule), rule.bos or rule.spaced, ()
    note = (
        "the GGUF does not say how its vocabulary splits text (tokenizer.ggml.pre), as files of before May 2024: it is "
        "split as Falcon's, which makes answers worse for other models; get a newer file"
    )
    return byte_level.core_of(vocabulary, rule), rule.bos, (note,)


def _add_tokens(core: Tokenizer, vocabulary: Vocabulary) -> None:
    """Tokens that are looked for before text is split: special ones, and those that the model's makers added."""
    swallows = vocabulary.model == "llama" and vocabulary.metadata.get("general.architecture") in SWALLOWING

    def added(text: str, special: bool) -> AddedToken:
        return AddedToken(text, normalized=False, special=special, rstrip=swallows and text not in PLAIN)

    core.add_special_tokens([added(text, True) for text in vocabulary.of_kind(CONTROL, UNKNOWN)])
    core.add_tokens([added(text, False) for text in vocabulary.of_kind(USER_DEFINED)])


def _add_ends(core: Tokenizer, vocabulary: Vocabulary, bos: bool) -> None:
    """BOS before a text and EOS behind it, where the file asks for them, or nothing else is usual."""
    usual = {"bos": bos, "eos": vocabulary.model == "t5"}
    texts = {}
    for role in usual:
        text = vocabulary.named(role)
        if vocabulary.flag(f"add_{role}_token", usual[role] and text is not None):
            texts[role] = text
    if missing := [role for role, text in texts.items() if text is None]:
        raise TokenizerError(
            f"{vocabulary.source} says that text gets {missing[0].upper()}, and not which token that is "
            f"(tokenizer.ggml.{missing[0]}_token_id): {AGAIN}"
        )
    if texts:
        core.post_processor = processors.TemplateProcessing(
            single=[*["bos"] * ("bos" in texts), "$A", *["eos"] * ("eos" in texts)],
            special_tokens=[
                {"id": role, "ids": [vocabulary.ids[text]], "tokens": [text]} for role, text in texts.items() if text
            ],
        )


def _ends(vocabulary: Vocabulary) -> tuple[str, ...]:
    """Tokens that end an answer: those that the file names, and control tokens that do so in every model."""
    named = [text for role in ("eos", "eot", "eom") if (text := vocabulary.named(role)) is not None]
    usual = [text for text in vocabulary.of_kind(CONTROL) if text in END_TEXTS]
    if GOES_ON & {*usual, *named}:
        usual = [text for text in usual if text != "<|end|>"]
    return tuple(dict.fromkeys((*named, *usual)))


def _templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name."""
    found = {UNNAMED: metadata.get(TEMPLATE)}
    found |= {
        key.removeprefix(TEMPLATE + "."): text for key, text in metadata.items() if key.startswith(TEMPLATE + ".")
    }
    return {name: text for name, text in found.items() if isinstance(text, str)}
