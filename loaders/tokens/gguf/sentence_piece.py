"""Vocabularies with a score for each token: SentencePiece's BPE (Llama, Mixtral) and its unigram model (T5).

SentencePiece's BPE joins, of all neighbours that make a token, those of the highest score, the first of equals. The
`tokenizers` library joins by a list of pairs. Both do the same with all pairs of tokens that make a token, in the
order of its score, as long as scores differ and no token overlaps itself at that moment (a run of one letter, cut in
two ways): a list has an order for these too, where SentencePiece goes by the place. Runs of every length come out the
same with the vocabularies of Llama, Mixtral and Phi-3.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers

from ....errors import TokenizerError, brief
from ..library import guarded
from .byte_level import SPACE
from .vocabulary import AGAIN, NORMAL, PREFIX, Vocabulary

CHARSMAP = f"{PREFIX}precompiled_charsmap"
# Each token is cut everywhere, so that few long ones would take hours. The largest vocabularies have two million
# characters, 64 in a token, and half a million pairs.
LONGEST, MOST_CHARACTERS, MOST_MERGES = 1024, 1 << 24, 1 << 22


def bpe(vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer without special tokens; raises TokenizerError where there are no scores."""
    with guarded(f"{vocabulary.source} has a vocabulary that cannot be used"):
        core = Tokenizer(
            models.BPE(
                vocabulary.ids, merges_of(vocabulary), unk_token=vocabulary.named("unknown"), fuse_unk=True,
                byte_fallback=True,
            )
        )  # fmt: skip
    spaced = vocabulary.flag("add_space_prefix", True)
    prefix = [normalizers.Prepend(SPACE)] if spaced else []
    core.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    core.decoder = _decoder(spaced)
    return core


def merges_of(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """All pairs of tokens that make a token, the best first. Tokens that are no part of text make none."""
    scores = _scores(vocabulary)
    usable = {text for text, kind in zip(vocabulary.texts, vocabulary.kinds, strict=True) if kind == NORMAL}
    ordered = sorted(
        (number for number, text in enumerate(vocabulary.texts) if text in usable), key=lambda n: -scores[n]
    )
    if (longest := max(map(len, usable), default=0)) > LONGEST or sum(map(len, usable)) > MOST_CHARACTERS:
        raise TokenizerError(
            f"{vocabulary.source} has tokens of {longest} characters, of {sum(map(len, usable))} in all: {LONGEST} and "
            f"{MOST_CHARACTERS} are the most; {AGAIN}"
        )
    merges: list[tuple[str, str]] = []
    for number in ordered:
        text = vocabulary.texts[number]
        merges += [(text[:at], text[at:]) for at in range(1, len(text)) if text[:at] in usable and text[at:] in usable]
        if len(merges) > MOST_MERGES:
            raise TokenizerError(f"{vocabulary.source} has tokens of more than {MOST_MERGES} pairs of others: {AGAIN}")
    return merges


def unigram(vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer without special tokens; raises TokenizerError where there are no scores, or no unknown token."""
    unknown = vocabulary.named("unknown")
    if unknown is None:
        raise TokenizerError(f"{vocabulary.source} names no unknown token, which a unigram model needs: {AGAIN}")
    scored = list(zip(vocabulary.texts, map(float, _scores(vocabulary)), strict=True))
    with guarded(f"{vocabulary.source} has a vocabulary that cannot be used"):
        core = Tokenizer(models.Unigram(scored, vocabulary.ids[unknown], byte_fallback=False))
    spaced = vocabulary.flag("add_space_prefix", False)
    steps: list[normalizers.Normalizer] = []
    if charsmap := vocabulary.metadata.get(CHARSMAP):
        steps.append(_of_charsmap(charsmap, vocabulary.source))
    if vocabulary.flag("remove_extra_whitespaces", False):
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spaced:
        steps.append(normalizers.Prepend(SPACE))
    core.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    core.decoder = _decoder(spaced)
    return core


def _of_charsmap(charsmap: Any, source: str) -> normalizers.Normalizer:
    """What a file says of characters that are written in another way, as bytes, or numbers that may be below 0."""
    if not isinstance(charsmap, list) or not all(isinstance(byte, int) for byte in charsmap):
        raise TokenizerError(f"{source} has {brief(charsmap)} for {CHARSMAP}, an array of bytes is needed: {AGAIN}")
    with guarded(f"{source} has a {CHARSMAP} that cannot be used"):
        return normalizers.Precompiled(bytes(byte % 256 for byte in charsmap))


def _decoder(spaced: bool) -> decoders.Decoder:
    strip = [decoders.Strip(" ", 1, 0)] if spaced else []
    return decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])


def _scores(vocabulary: Vocabulary) -> tuple[float, ...]:
    if not vocabulary.scores:
        raise TokenizerError(f"{vocabulary.source} has no tokenizer.ggml.scores, which its vocabulary needs: {AGAIN}")
    return vocabulary.scores
