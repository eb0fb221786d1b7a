"""Vocabularies with a score for each token: SentencePiece's BPE (Llama, Mixtral) and its unigram model (T5).

SentencePiece's BPE joins, of all neighbours that make a token, those of the highest score, the first of equals. The
`tokenizers` library joins by a list of pairs. Both do the same with all pairs of tokens that make a token, in the
order of its score, as long as scores differ and no token overlaps itself at that moment (a run of one letter, cut in
two ways): a list has an order for these too, where SentencePiece goes by the place. Runs of every length come out the
same with the vocabularies of Llama, Mixtral and Phi-3.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, normalizers

from ....errors import TokenizerError
from .byte_level import SPACE
from .vocabulary import AGAIN, NORMAL, Vocabulary


def bpe(vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer without special tokens; raises TokenizerError where there are no scores."""
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
    merges = []
    for number in ordered:
        text = vocabulary.texts[number]
        for cut in range(1, len(text)):
            if text[:cut] in usable and text[cut:] in usable:
                merges.append((text[:cut], text[cut:]))
    return merges


def unigram(vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer without special tokens; raises TokenizerError where there are no scores, or no unknown token."""
    unknown = vocabulary.named("unknown")
    if unknown is None:
        raise TokenizerError(f"{vocabulary.source} names no unknown token, which a unigram model needs: {AGAIN}")
    scored = list(zip(vocabulary.texts, map(float, _scores(vocabulary)), strict=True))
    core = Tokenizer(models.Unigram(scored, vocabulary.ids[unknown], byte_fallback=False))
    spaced = vocabulary.flag("add_space_prefix", False)
    steps: list[normalizers.Normalizer] = []
    if charsmap := vocabulary.metadata.get("tokenizer.ggml.precompiled_charsmap"):
        steps.append(normalizers.Precompiled(bytes(byte % 256 for byte in charsmap)))
    if vocabulary.flag("remove_extra_whitespaces", False):
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spaced:
        steps.append(normalizers.Prepend(SPACE))
    core.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    core.decoder = _decoder(spaced)
    return core


def _decoder(spaced: bool) -> decoders.Decoder:
    strip = [decoders.Strip(" ", 1, 0)] if spaced else []
    return decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])


def _scores(vocabulary: Vocabulary) -> tuple[float, ...]:
    if not vocabulary.scores:
        raise TokenizerError(f"{vocabulary.source} has no tokenizer.ggml.scores, which its vocabulary needs: {AGAIN}")
    return vocabulary.scores
