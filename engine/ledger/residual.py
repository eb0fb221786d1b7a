"""Where the time of a phase went, by tier, and which part of it the prediction got wrong most.

    measured  = time of all tiers - (overlap - idle) + outside          predicted = the same of the prediction, where
    residual  = sum of the differences of these parts                   `fixed` stands for outside

So the part that differs most is the residual's largest cause: a tier that is slower than its rate, work that did not
run side by side as it should, or Python around the pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from .passes import FIXED, HANDOFF
from .summary import Summary

OVERLAP, OUTSIDE = "overlap", "outside"


@dataclass(frozen=True, kw_only=True)
class Cause:
    """A part of the time: seconds that were predicted and measured. Of `OVERLAP` they are saved."""

    name: str
    predicted_s: float
    measured_s: float

    @property
    def costs_s(self) -> float:
        """What it adds to the residual."""
        more = self.measured_s - self.predicted_s
        return -more if self.name == OVERLAP else more


@dataclass(frozen=True, kw_only=True)
class TierTimes:
    """Milliseconds of a token: measured with the clock on, of it by tier, waiting, side by side, idle, outside; what
    was predicted by term; the part that differs most (None without a prediction)."""

    measured_ms: float
    time_ms: dict[str, float]
    wait_ms: dict[str, float]
    overlap_ms: float
    idle_ms: float
    outside_ms: float
    predicted_time_ms: dict[str, float] | None
    predicted_overlap_ms: float | None
    cause: str | None


def causes(phase: Summary) -> list[Cause]:
    """All parts of the residual, that which differs most first; none where there is no prediction, or no times."""
    times, predicted = phase.times, phase.predicted
    if times is None or predicted is None or times.overlap_s is None:
        return []
    assert times.idle_s is not None, "overlap without idle time"
    assert times.outside_s is not None, "overlap without the time outside"
    terms = predicted.terms
    tiers = sorted({*times.busy, *terms} - {FIXED, HANDOFF})
    found = [Cause(name=t, predicted_s=terms.get(t, 0.0), measured_s=times.busy.get(t, 0.0)) for t in tiers]
    found.append(Cause(name=OUTSIDE, predicted_s=terms.get(FIXED, 0.0), measured_s=times.outside_s))
    saved = predicted.overlap_s - terms.get(HANDOFF, 0.0)
    found.append(Cause(name=OVERLAP, predicted_s=saved, measured_s=times.overlap_s - times.idle_s))
    return sorted(found, key=lambda cause: -abs(cause.costs_s))


def tier_times(phase: Summary) -> TierTimes | None:
    """A phase's times per token; None where the GPU was not timed."""
    times, predicted = phase.times, phase.predicted
    if times is None or times.overlap_s is None or times.idle_s is None or times.outside_s is None:
        return None
    each = 1e3 / max(1, phase.tokens)
    found = causes(phase)
    return TierTimes(
        measured_ms=phase.measured_s * each,
        time_ms=_scaled(times.busy, each),
        wait_ms=_scaled(times.waits, each),
        overlap_ms=times.overlap_s * each,
        idle_ms=times.idle_s * each,
        outside_ms=times.outside_s * each,
        predicted_time_ms=None if predicted is None else _scaled(predicted.terms, each),
        predicted_overlap_ms=None if predicted is None else predicted.overlap_s * each,
        cause=found[0].name if found else None,
    )


def _scaled(seconds: dict[str, float], factor: float) -> dict[str, float]:
    return {name: s * factor for name, s in seconds.items()}
