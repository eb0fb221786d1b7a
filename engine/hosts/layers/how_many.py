"""Into how many parts a pass is cut."""

from __future__ import annotations

from ...bandwidth_model.network.stops import Route, Work
from ...ledger.pass_bytes import Span

LEAST = 32  # tokens of a part, where nobody knows what they cost


def parts(spans: tuple[Span, ...], stops: int, route: Route | None) -> int:
    """As many as take least time by what was measured; else as machines, of a few tokens at least: each part reads all
    weights of a layer once more. spans: new tokens of each sequence, and its tokens in the cache."""
    tokens = sum(new for new, _ in spans)
    if route is None:
        return max(1, min(stops, tokens // LEAST))
    return route.parts(Work(tokens=tokens, is_prompt=tokens > len(spans), context=sum(all_ for _, all_ in spans)))
