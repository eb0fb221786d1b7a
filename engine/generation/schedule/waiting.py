"""In which order prompts are computed, and which may go past one that does not fit yet.

The lowest `priority` first; within it the fewest tokens that are left to compute, so that a chat's title does not wait
for 20,000 tokens. Waiting counts as AGEING tokens a second, so that a long prompt's turn comes however many short ones
follow. Knows counts and a clock, no pages.
"""

from __future__ import annotations

from collections.abc import Iterable

from ...model.kv_cache import PAGE
from ..sequence import Sequence

AGEING = 256.0  # tokens that a second of waiting is worth
MOST_PASSED_OVER = 8  # smaller ones that go past a prompt which does not fit


def in_order(sequences: Iterable[Sequence], now: float) -> list[Sequence]:
    """Sequences with tokens left to compute, those first whose turn it is."""
    return sorted(sequences, key=lambda s: (s.priority, s.pending - AGEING * (now - s.arrived), s.id))


def shared_pages(one: list[int], other: list[int]) -> int:
    """Whole pages with the same tokens at the beginning of both, the last token of `one` left out: it is computed in
    any case."""
    longest = min(len(one) - 1, len(other)) // PAGE
    for page in range(longest):
        span = slice(page * PAGE, (page + 1) * PAGE)
        if one[span] != other[span]:
            return page
    return longest
