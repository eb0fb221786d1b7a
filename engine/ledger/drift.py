"""Watches a run: says once when what it takes and what was predicted drift apart, and which tier is behind it.

Decode passes are added up until they hold `WINDOW` tokens, then the sums are compared and it starts anew. Where tiers
were timed, the one that differs most from its prediction is named; else the one that was predicted to take most of the
time: then a run knows how long a pass took, not how long each tier did.
"""

from __future__ import annotations

from collections.abc import Callable

from .passes import Pass
from .residual import OVERLAP, causes
from .summary import Summary, summarise

WINDOW = 32  # tokens
TOLERANCE = 0.2  # of the predicted time


class DriftWatch:
    """Sees every pass of a ledger (`Ledger.watch`) and tells at most once."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.told = False
        self.passes: list[Pass] = []

    def __call__(self, done: Pass) -> None:
        """Takes note of a pass; what it should have taken is asked when there are enough of them."""
        if self.told or done.phase != "decode" or done.expect is None:
            return
        self.passes.append(done)
        if sum(one.tokens for one in self.passes) >= WINDOW:
            self._compare(summarise(self.passes, "decode"))
            self.passes.clear()

    def _compare(self, window: Summary) -> None:
        line = sentence(window)
        if line is not None:
            self.told = True
            self.tell(line)


def sentence(window: Summary) -> str | None:
    """How a window's time differs from its prediction, and what is behind it; None where it does not, or none is
    known."""
    expected = window.predicted_s
    is_off = bool(expected) and abs(window.measured_s / (expected or 1) - 1) > TOLERANCE
    return _line(window, expected or 0.0) if is_off else None


def _line(window: Summary, expected: float) -> str:
    took = f"{window.measured_s / window.tokens * 1e3:.2f} ms a token, predicted {expected / window.tokens * 1e3:.2f}"
    if window.measured_s < expected:
        return f"faster than predicted: {took}. The profile of this machine is out of date: headrace measure"
    if window.times is not None and window.times.overlap_s is None:
        return f"slower than predicted: {took}; a run with --ledger FILE says which tier"
    assert window.predicted is not None, "a window of passes without prediction"
    terms = window.predicted.terms
    found = causes(window) if len(window.bytes) > 1 else []
    name = found[0].name if found else max(terms, key=lambda term: terms[term])
    if name == OVERLAP:
        return f"slower than predicted: {took}; less ran side by side than it should: see the ledger's wait_ms"
    size = sum(window.bytes.get(name, {}).values())
    if not size or not terms.get(name):
        return f"slower than predicted: {took}; most of it is calls and hand-offs, no tier: see headrace doctor"
    seconds = found[0].measured_s if found else window.measured_s - (expected - terms[name])
    rate, known = size / max(seconds, 1e-9) / 1e9, size / terms[name] / 1e9
    return f"slower than predicted: {took}; {name} gives {rate:.1f} of {known:.1f} GB/s: see headrace doctor"
