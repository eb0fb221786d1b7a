"""Sums over passes: of a phase, and of a whole run in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from . import guesses
from .guesses import Guesses
from .passes import Bytes, Pass, Prediction, Times, add_bytes, add_up

KEPT = 4096  # passes that an account keeps whole; of older ones their sums
PHASES = ("prefill", "mixed", "decode")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Sums over the passes of one phase. Rates are tokens per second; bytes and times are per token. tokens: that
    sequences came on by. forced: tokens that grammars forced, which saved their sequences as many passes. drafted,
    accepted: guesses that were computed, and those that came true. plain_bytes, plain_tokens: of the passes without
    drafts. guesses: of models for drafts."""

    phase: str
    passes: int
    tokens: int
    measured_s: float
    predicted: Prediction | None
    bytes: Bytes
    times: Times | None
    forced: int = 0
    drafted: int = 0
    accepted: int = 0
    plain_bytes: int = 0
    plain_tokens: int = 0
    guesses: Guesses = guesses.NONE

    @property
    def predicted_s(self) -> float | None:
        return None if self.predicted is None else self.predicted.seconds

    @property
    def tok_s(self) -> float:
        return self.tokens / self.measured_s if self.measured_s else 0.0

    @property
    def predicted_tok_s(self) -> float | None:
        return self.tokens / self.predicted_s if self.predicted_s else None

    @property
    def residual_ms(self) -> float | None:
        """Milliseconds per token that the model does not explain."""
        if self.predicted_s is None or not self.tokens:
            return None
        return (self.measured_s - self.predicted_s) * 1e3 / self.tokens

    @property
    def bytes_without_drafts(self) -> int | None:
        """Bytes a token of passes without drafts; None: there were none."""
        return round(self.plain_bytes / self.plain_tokens) if self.plain_tokens else None

    def bytes_per_token(self) -> Bytes:
        """Mean bytes per token by tier and group, and their total."""
        out: Bytes = {}
        for tier, groups in self.bytes.items():
            out[tier] = {group: round(size / max(1, self.tokens)) for group, size in groups.items()}
            out[tier]["total"] = round(sum(groups.values()) / max(1, self.tokens))
        return out


def summarise(passes: Iterable[Pass], phase: str) -> Summary:
    """Adds up the passes of one phase."""
    chosen = [p for p in passes if p.phase == phase]
    sums: Bytes = {}
    for one in chosen:
        add_bytes(sums, one.bytes)
    plain = [p for p in chosen if not p.drafted and not p.again]
    return Summary(
        phase=phase,
        passes=len(chosen),
        tokens=sum(p.gained for p in chosen),
        measured_s=sum(p.measured_s for p in chosen),
        predicted=_all_predictions([p.predicted for p in chosen]),
        bytes=sums,
        times=_all_times([p.times for p in chosen]),
        forced=sum(p.forced for p in chosen),
        drafted=sum(p.drafted for p in chosen),
        accepted=sum(p.accepted for p in chosen),
        plain_bytes=sum(sum(map(p.total, p.bytes)) for p in plain),
        plain_tokens=sum(p.gained for p in plain),
        guesses=sum((p.guesses for p in chosen), guesses.NONE),
    )


def join(one: Summary, other: Summary) -> Summary:
    """The sum of two summaries of one phase."""
    if not one.passes or not other.passes:
        return one if one.passes else other
    sums: Bytes = {}
    add_bytes(sums, one.bytes)
    add_bytes(sums, other.bytes)
    return Summary(
        phase=one.phase,
        passes=one.passes + other.passes,
        tokens=one.tokens + other.tokens,
        measured_s=one.measured_s + other.measured_s,
        predicted=_all_predictions([one.predicted, other.predicted]),
        bytes=sums,
        times=_all_times([one.times, other.times]),
        forced=one.forced + other.forced,
        drafted=one.drafted + other.drafted,
        accepted=one.accepted + other.accepted,
        plain_bytes=one.plain_bytes + other.plain_bytes,
        plain_tokens=one.plain_tokens + other.plain_tokens,
        guesses=one.guesses + other.guesses,
    )


def _all_predictions(each: list[Prediction | None]) -> Prediction | None:
    """Their sum; None where one is missing."""
    known = [one for one in each if one is not None]
    if not known or len(known) < len(each):
        return None
    return Prediction(terms=add_up(one.terms for one in known), seconds=sum(one.seconds for one in known))


def _all_times(each: list[Times | None]) -> Times | None:
    """Their sum; what one of them does not know is not known."""
    known = [one for one in each if one is not None]
    if not known or len(known) < len(each):
        return None

    def total(parts: list[float | None]) -> float | None:
        return None if None in parts else sum(part for part in parts if part is not None)

    return Times(
        busy=add_up(one.busy for one in known),
        waits=add_up(one.waits for one in known),
        overlap_s=total([one.overlap_s for one in known]),
        idle_s=total([one.idle_s for one in known]),
        outside_s=total([one.outside_s for one in known]),
    )


class Account:
    """The passes of a run or of a request: the last KEPT of them whole, older ones as sums by phase, so that neither
    memory nor the cost of a pass grows with the number of passes. `count`: how many there were."""

    def __init__(self, kept: int = KEPT) -> None:
        self.kept = kept
        self.recent: deque[Pass] = deque()
        self.older: dict[str, Summary] = {}
        self.count = 0

    def add(self, done: Pass) -> None:
        """Takes a pass in; every `kept` passes as many old ones become sums."""
        self.recent.append(done)
        self.count += 1
        if len(self.recent) >= 2 * self.kept:
            self._fold([self.recent.popleft() for _ in range(self.kept)])

    def _fold(self, passes: list[Pass]) -> None:
        for phase in PHASES:
            more = summarise(passes, phase)
            if more.passes:
                before = self.older.get(phase)
                self.older[phase] = more if before is None else join(before, more)

    def summary(self, phase: str) -> Summary:
        """Of all passes of a phase, old ones included."""
        recent, older = summarise(self.recent, phase), self.older.get(phase)
        return recent if older is None else join(older, recent)
