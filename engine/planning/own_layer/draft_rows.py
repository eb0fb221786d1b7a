"""Among which tokens drafts are chosen: how many rows of the head a guess multiplies, and what it misses by that.

In byte-level BPE the ids of early merges are the most frequent tokens, so the first rows of the head are a view that
holds most of a text. Shares were counted over English prose and docs, Python, C++ and JavaScript in the vocabularies of
Qwen3, Qwen3.6, DeepSeek and gpt-oss (docs/speculation.md has the tables). Other languages have less: a run counts its
own text. Imports no torch.
"""

from __future__ import annotations

import math

ALL, AUTO = "all", "auto"
SIZES = (8192, 16384, 32768, 65536, 131072)
SHARES = {1: 0.0, 8192: 0.76, 16384: 0.84, 32768: 0.90, 65536: 0.95, 131072: 0.99}
MOST_LAST = 512  # Qwen, DeepSeek, GLM and Kimi have their special tokens among as many


def choices(asked: int | str, vocab: int) -> tuple[int, ...]:
    """How many of the first rows a guess may choose among, fewest first. asked: auto, all, or a number."""
    if asked == AUTO:
        return (*(rows for rows in SIZES if rows < vocab), vocab)
    return (vocab if asked == ALL else min(int(asked), vocab),)


def share(rows: int, vocab: int) -> float:
    """Of the tokens of a text those among the first rows, where nothing is known of the text."""
    if rows >= vocab:
        return 1.0
    below = max(size for size in SHARES if size <= rows)
    above = min((size for size in SHARES if rows < size < vocab), default=vocab)
    at = math.log2(rows / below) / math.log2(above / below)
    return SHARES[below] + at * ((1.0 if above == vocab else SHARES[above]) - SHARES[below])


def last_rows(vocab: int) -> int:
    """The vocabulary's last rows, which are read besides: tokenizers have end signs and other special tokens there."""
    return min(MOST_LAST, vocab // 64)


def read_rows(rows: int, vocab: int) -> int:
    """Rows that a guess among so many multiplies."""
    return vocab if rows >= vocab else min(vocab, rows + last_rows(vocab))
