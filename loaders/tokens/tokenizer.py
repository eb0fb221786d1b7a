"""Tokens to text and back, from the tokenizer files of a model or from its GGUF file.

The `tokenizers` library does the encoding. What is added here is what the rest of a model's tokenizer files say:
which tokens are special, whether a text begins with BOS, and which chat template goes with them.
This file does not know the model: not its context length, and not which ids end a text by its generation_config.json.
How text grows token by token is in detokenizer.py, how a chat becomes one prompt in chat_template.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from ...errors import TokenizerError
from .. import regular
from ..files import gguf_set, recognise
from . import template_files
from .chat_template import ChatTemplate
from .conversation import Message
from .detokenizer import TextStream, bytes_of, start_stream, streaming_steps
from .gguf.parts import parts_of
from .library import PANIC, check_growth, guarded, steps_of

ENDS = ("eos_token", "eot_token", "eom_token")  # of a text, a turn, a message
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_CONVERT = (
    "convert it once with transformers: "
    "AutoTokenizer.from_pretrained(directory).save_pretrained(directory) writes tokenizer.json"
)


class Tokenizer:
    """One model's tokenizer; made by `Tokenizer.load`, or by `Tokenizer.of_gguf`."""

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        settings: Mapping[str, Any],
        templates: Mapping[str, str],
        source: str,
        end_texts: Iterable[str] = (),
        notes: Sequence[str] = (),
    ):
        """`settings` is what tokenizer_config.json holds, `templates` are chat templates by name, `source` is the name
        that errors give. end_texts: tokens that end a text, besides those that the settings name. notes: what a user
        should know of how the files were read.

        Raises TokenizerError if a token that the settings name as end of text is not in the vocabulary.
        """
        self.source, self.settings, self.notes = source, settings, tuple(notes)
        self.special_texts = {name: text for name in NAMED_TOKENS if (text := _text_of(settings.get(name)))}
        self.templates = {name: self._template(text) for name, text in templates.items()}  # compiled when used
        self._given: ChatTemplate | None = None  # the last one that came as text: a server's is the same every time
        self._core = core
        check_growth(core, source)
        # A tokenizer.json may carry the padding and truncation of its training; both would damage a prompt.
        core.no_padding()
        core.no_truncation()
        _mark_special(core, self.special_texts.values())
        self.vocab_size = max(core.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.eos_ids = self._find_ends(end_texts)
        self._bos_id = self.token_id(self.special_texts.get("bos_token", ""))
        self._missing_bos: list[int] = []
        self._missing_bos = self._find_missing_bos()

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Read the tokenizer files of a model's directory, or what a GGUF file (any part of a split one) holds of them.

        Raises TokenizerError if tokenizer.json is missing, or if one of the files cannot be read; CheckpointError if a
        GGUF file is damaged.
        """
        if directory.is_file() and gguf_set.is_gguf(directory):
            return cls.of_gguf(gguf_set.of_path(directory).metadata, str(directory))
        core = _load_core(directory)
        older, newer = (_load_json(directory / f"{name}.json") for name in ("special_tokens_map", "tokenizer_config"))
        templates, notes = template_files.find(directory, newer, _load_json(directory / "chat_template.json"))
        ends = [text for settings in (older, newer) for name in ENDS if (text := _text_of(settings.get(name)))]
        return cls(core, {**older, **newer}, templates, str(directory), ends, notes)

    @staticmethod
    def is_in(path: Path) -> bool:
        """Whether a GGUF file holds a tokenizer; its model is called "none" where it says that there is none."""
        metadata = gguf_set.of_path(path).metadata
        return any(key.startswith("tokenizer.") for key in metadata) and metadata.get("tokenizer.ggml.model") != "none"

    @classmethod
    def of_gguf(cls, metadata: Mapping[str, Any], source: str) -> Tokenizer:
        """From the metadata of a GGUF header. `source` is the name that errors give.

        Raises TokenizerError if they hold no tokenizer, one of a kind that is not supported, or a damaged one.
        """
        parts = parts_of(metadata, source)
        return cls(parts.core, parts.settings, parts.templates, source, parts.ends, parts.notes)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, with BOS (and whatever else the tokenizer asks for) unless told otherwise.

        Raises TokenizerError if the text is not valid unicode (a lone surrogate), or its files do not fit each other.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"the text {text[:40]!r} cannot be encoded: it is not valid unicode; was it read with a wrong encoding?"
            ) from error
        with guarded(f"the tokenizer of {self.source} cannot encode {text[:40]!r}"):
            (found,) = self._core.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = found.ids
        return [*self._missing_bos, *ids] if add_special_tokens else ids

    def has_two_starts(self, ids: Sequence[int]) -> bool:
        """Whether ids begin with BOS twice: one that the text spells behind one that was added."""
        return self._bos_id is not None and list(ids[:2]) == [self._bos_id] * 2

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`; ids outside of the vocabulary (padding rows of the embedding) give nothing. Raises
        TokenizerError where the tokenizer's files do not fit each other."""
        with guarded(f"the tokenizer of {self.source} cannot decode"):
            texts: list[str] = self._core.decode_batch([list(ids)], skip_special_tokens=skip_special_tokens)
        return texts[0]

    def token_id(self, text: str) -> int | None:
        """Id of the token that is spelled exactly `text`, or None."""
        return self._core.token_to_id(text)

    def vocabulary(self) -> dict[str, int]:
        """Ids by their tokens."""
        found: dict[str, int] = self._core.get_vocab()
        return found

    def to_json(self) -> str:
        """All of it as the text of a tokenizer.json."""
        return self._core.to_str()

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that a token stands for; none of an id outside of the vocabulary."""
        token = self._core.id_to_token(token_id)
        return b"" if token is None else bytes_of(token, self._steps)

    def stream(self, skip_special_tokens: bool = True, marks: Set[int] = frozenset()) -> TextStream:
        """A fresh incremental decoder. marks: tokens that give no text and part what is before from what follows, as
        those of a dialect. Raises TokenizerError if the decoder rewrites text it has already given."""
        silent = self._specials if skip_special_tokens else frozenset()
        return start_stream(self._core, silent, self._steps, marks)

    def render_chat(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        tools: Any = None,
        template: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        continues: bool = False,
    ) -> str:
        """The prompt for `messages`, special tokens spelled out: encode it with add_special_tokens=False.

        tools: functions that the model may call. template: the name of one of `templates`, or a template's own text.
        arguments: of the template, as enable_thinking. continues: it ends with the text of the last message, which the
        model goes on with. Raises TokenizerError if there is no chat template, if a message
        is none, or if the template refuses the messages, is faulty, or tries what the sandbox forbids.
        """
        found = self.template(template, bool(tools))
        return found.render(messages, add_generation_prompt, tools, arguments, continues=continues)

    def _template(self, text: str) -> ChatTemplate:
        return ChatTemplate(text=text, tokens=self.special_texts, source=self.source)

    def template(self, wanted: str | None = None, with_tools: bool = False) -> ChatTemplate:
        """A template by name, by its text, or the one that transformers takes if none is asked for. Raises
        TokenizerError if there is none."""
        if wanted is not None and "{" in wanted:
            given = self._given
            if given is None or given.text != wanted:
                self._given = given = self._template(wanted)
            return given
        names = [wanted] if wanted is not None else ["tool_use"] * with_tools + [template_files.DEFAULT]
        for name in names:
            if name in self.templates:
                return self.templates[name]
        there = ", ".join(sorted(self.templates))
        if wanted is not None:
            known = f"there are {there}" if there else "the model has none"
            raise TokenizerError(f"chat template {wanted!r} is no template of {self.source}: {known}; or give a file")
        if self.templates:
            raise TokenizerError(
                f"{self.source} has no default among its chat templates: choose one with --chat-template: {there}"
            )
        raise TokenizerError(
            f"{self.source} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json or in "
            "the GGUF): it is probably a base model; give the prompt as plain text, or a template with --chat-template "
            "FILE"
        )

    def check_fits(self, embedding_rows: int) -> None:
        """Raise TokenizerError if there are tokens without a row in the embedding (fewer tokens than rows is usual)."""
        if self.vocab_size > embedding_rows:
            raise TokenizerError(
                f"the tokenizer of {self.source} has {self.vocab_size} tokens, but the model's embedding has only "
                f"{embedding_rows} rows: they do not belong together; take the tokenizer files that came with the model"
            )

    @cached_property
    def _specials(self) -> frozenset[str]:
        return frozenset(_special_texts(self._core))

    @cached_property
    def _steps(self) -> list[dict[str, Any]]:
        return streaming_steps(self._core, self.source)

    @cached_property
    def added_tokens(self) -> dict[str, int]:
        """Ids of the tokens that text is never cut within, special ones and others, by their text."""
        return {token.content: number for number, token in self._core.get_added_tokens_decoder().items()}

    @property
    def special_tokens(self) -> frozenset[str]:
        """Every token that streams and `decode` leave out."""
        return self._specials

    @property
    def kind(self) -> str:
        """How it makes tokens of text: "byte-level BPE", "BPE", "Unigram", ..."""
        steps = {step["type"] for step in steps_of(self._core.decoder)}
        name = type(self._core.model).__name__
        return f"byte-level {name}" if "ByteLevel" in steps else name

    @property
    def splits(self) -> tuple[str, ...]:
        """What cuts text into pieces before that, by the library's names."""
        return tuple(str(step["type"]) for step in steps_of(self._core.pre_tokenizer))

    def is_special(self, text: str) -> bool:
        """Whether a text is a special token, which streams and `decode` leave out."""
        return text in self._specials

    def _find_ends(self, more: Iterable[str]) -> tuple[int, ...]:
        """Ids of all tokens that the files name as the end of a text or a turn."""
        named = [text for name in ENDS if (text := _text_of(self.settings.get(name)))]
        found = {text: self.token_id(text) for text in (*named, *more)}
        if missing := [text for text in named if found[text] is None]:
            raise TokenizerError(
                f"the tokenizer settings of {self.source} name {missing[0]!r} as eos_token, but tokenizer.json has no "
                "such token: the two files do not belong together; take both from the same model"
            )
        return tuple(dict.fromkeys(token for token in found.values() if token is not None))

    def _find_missing_bos(self) -> list[int]:
        """The BOS that the settings ask for where tokenizer.json does not add it by itself.

        transformers ignores add_bos_token beside a tokenizer.json since its version 5; models that were trained with
        BOS and say so only in their settings still need it. A false is ignored here too: tokenizer.json knows better.
        """
        if self._bos_id is None or self.settings.get("add_bos_token") is not True:
            return []
        # Of an empty text only what the post-processor adds is left, so a BOS that is text is not taken for it.
        return [] if self._bos_id in self.encode("") else [self._bos_id]


def _special_texts(core: tokenizers.Tokenizer) -> set[str]:
    return {token.content for token in core.get_added_tokens_decoder().values() if token.special}


def _mark_special(core: tokenizers.Tokenizer, texts: Iterable[str]) -> None:
    """Tokens that the settings name (</s>) are special even where tokenizer.json forgot to say so."""
    known = _special_texts(core)
    forgotten = [text for text in texts if text not in known and core.token_to_id(text) is not None]
    core.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False) for text in forgotten])


def _text_of(token: Any) -> str | None:
    """A token in the settings is a string, or an object whose content is the string."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _load_core(directory: Path) -> tokenizers.Tokenizer:
    path = directory / "tokenizer.json"
    if not recognise.is_named(path):
        raise TokenizerError(_explain_missing(directory))
    try:
        regular.check(path)
        return tokenizers.Tokenizer.from_file(str(path))
    # The library raises nothing more exact than Exception, and its panics are not even that.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        what = recognise.what_is(path) or (
            f"cannot be read as a tokenizer: {error}; fetch the file again, or upgrade the tokenizers library "
            f"(installed: {tokenizers.__version__})"
        )
        raise TokenizerError(f"{path} {what}") from error


def _explain_missing(directory: Path) -> str:
    """What to say about a directory without tokenizer.json: older formats need a conversion, nothing needs a copy."""
    older = [name for name in ("tokenizer.model", "spiece.model", "tekken.json") if (directory / name).is_file()]
    if not older and (directory / "vocab.json").is_file():
        older = [name for name in ("vocab.json", "merges.txt") if (directory / name).is_file()]
    if older:
        return f"{directory} has no tokenizer.json, only {' and '.join(older)}: {_CONVERT}"
    return f"{directory} has no tokenizer.json: copy the tokenizer files of the model into this directory"


def _load_json(path: Path) -> dict[str, Any]:
    """The object in an optional file; empty if there is no file."""
    if not recognise.is_named(path):
        return {}
    try:
        value = json.loads(regular.text(path))
    except (OSError, ValueError, RecursionError) as error:
        what = recognise.what_is(path) or f"cannot be read: {error}; fetch the file again"
        raise TokenizerError(f"{path} {what}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} holds a {type(value).__name__} where an object is needed; fetch the file again")
    return value
