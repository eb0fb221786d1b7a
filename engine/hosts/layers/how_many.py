"""Into how many parts a pass is cut."""

from __future__ import annotations

LEAST = 32  # tokens of a part, where nobody knows what they cost


def by_tokens(tokens: int, stops: int) -> int:
    """As many parts as machines, of a few tokens at least: each part reads all weights of a layer once more."""
    return max(1, min(stops, tokens // LEAST))
