"""Byte-level BPE: text is split by a rule, and the bytes of each piece are merged in the order of the file.

Some of the same kind work on plain text with U+2581 for a space instead (Gemma 4): they split nothing.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ....errors import TokenizerError
from .split_rules import SplitRule
from .vocabulary import AGAIN, USER_DEFINED, Vocabulary

SPACE = "\u2581"
# Letters of the byte alphabet for bytes that text has none of.
IN_NO_TEXT = frozenset(map(chr, (0xC0, 0xC1, *range(0xF5, 0x100))))


def core_of(vocabulary: Vocabulary, rule: SplitRule) -> Tokenizer:
    """The tokenizer without special tokens; raises TokenizerError for merges of what is no token."""
    core = Tokenizer(_model(vocabulary, rule))
    if rule.spaced:
        core.normalizer = normalizers.Replace(" ", SPACE)
        core.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
        return core
    if rule.composed:
        core.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns]
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = _decoder(vocabulary)
    return core


def _decoder(vocabulary: Vocabulary) -> decoders.Decoder:
    """Letters to bytes. DeepSeek added letters that were missing (\u00fc) as tokens; spelled like the bytes of their
    code points, these would become broken text."""
    letters = {letter for text in vocabulary.of_kind(USER_DEFINED) for letter in IN_NO_TEXT.intersection(text)}
    spelled = [decoders.Replace(letter, _as_bytes(letter)) for letter in sorted(letters)]
    return decoders.Sequence([*spelled, decoders.ByteLevel()]) if spelled else decoders.ByteLevel()


def _as_bytes(text: str) -> str:
    """A text in the byte alphabet."""
    ((spelled, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return spelled


def _model(vocabulary: Vocabulary, rule: SplitRule) -> models.BPE:
    try:
        if rule.spaced:
            unknown = vocabulary.named("unknown")
            return models.BPE(vocabulary.ids, vocabulary.merges, byte_fallback=True, fuse_unk=True, unk_token=unknown)
        return models.BPE(vocabulary.ids, vocabulary.merges, ignore_merges=rule.whole_words)
    # The library raises nothing more exact than Exception.
    except Exception as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(f"{vocabulary.source} has merges that do not fit its tokens ({error}): {AGAIN}") from error
