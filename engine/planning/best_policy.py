"""Which policy is the best for a budget, by a trace and a machine's rates, and why.

Every candidate is replayed and the fastest taken, with two reservations, since a prediction is not exact and moving
costs more than a replay knows: of those within EQUAL of the fastest the simplest one is as good, and one that moves
experts must gain GAIN over the best that moves none. The first half of the trace teaches, the second is what is
compared: a placement by frequency would else be praised for what it has seen. Those that move begin the second half
with what they had at the end of the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields, replace

from ...errors import OptionError
from ..policies import registry
from ..policies.replay.replay import Replayed
from ..policies.residents import Counts
from ..units import size
from .replays import CEILING, Replays

FIXED = ("all-ram", "uniform", "first-layers", "frequency", "second-gpu")  # the simplest first
MOVING = ("lru", "split", "lfu", "slru", "admit2", "classes", "next-layer")
EQUAL, GAIN = 0.01, 0.03
MOST_PASSES, FEW_PASSES = 2048, 64  # the last so many are looked at; fewer than that compared: a guess


@dataclass(frozen=True, kw_only=True)
class Best:
    """The choice for a budget in bytes. rows: of every candidate, the simplest first, and of the optimum, on the second
    half of the trace; fixed, moving: the best row of those that never move anything and of the others (None: no such
    candidate); more: the best row with twice the budget (None: that is no other budget)."""

    budget: int
    choice: str
    rows: tuple[Replayed, ...]
    fixed: Replayed
    moving: Replayed | None
    more: Replayed | None

    @property
    def chosen(self) -> Replayed:
        """The row of the choice."""
        return self.row(self.choice)

    @property
    def gain(self) -> float:
        """Over nothing resident: 0.1 is a tenth faster."""
        return _gain(self.chosen, self.row("all-ram"))

    @property
    def is_no_cache_as_good(self) -> bool:
        """Whether that is too little to notice."""
        return self.gain < GAIN

    @property
    def is_more_useless(self) -> bool:
        """Whether twice the budget gains too little to notice."""
        return self.more is not None and _gain(self.more, self.chosen) < GAIN

    def row(self, policy: str) -> Replayed:
        """Of a candidate, or of the optimum."""
        return next(row for row in self.rows if row.policy == policy)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why, a plain sentence each."""
        return tuple(_reasons(self))


def choose(replays: Replays, budget: int, candidates: Sequence[str] = (*FIXED, *MOVING)) -> Best:
    """Compares candidates, in the order of their simplicity; those that need what is not known are left out, and
    `all-ram` is always one. The choice is made for a run by `registry.make(best.choice, replays.known)`. Raises
    OptionError without rates, and for a trace of a single pass."""
    if replays.rates is None:
        raise OptionError(
            "policy 'auto' goes by tokens/s: that takes rates of a CPU, a GPU and its link (headrace measure, or "
            "--hardware rtx-4090,ddr5-5600-2ch)"
        )
    recent = _recent(replays)
    names = ["all-ram", *(name for name in candidates if name not in ("all-ram", CEILING) and _can_be(name, replays))]
    rows = tuple(_rows(recent, names, budget))
    fixed = _simplest([row for row in rows if row.policy in FIXED])
    others = [row for row in rows if row.policy not in FIXED]
    moving = _simplest(others) if others else None
    chosen = fixed if moving is None or _gain(moving, fixed) < GAIN else moving
    twice, more = min(2 * budget, replays.shape.nbytes), None
    if budget < twice:
        more = _simplest(_rows(recent, names, twice))
    ceiling = recent[1].row(CEILING, budget)
    return Best(
        budget=budget, choice=chosen.policy, rows=(*rows, ceiling), fixed=fixed, moving=moving, more=more
    )  # fmt: skip


def _recent(replays: Replays) -> tuple[Replays, Replays, Replays]:
    """The last passes: their first half, their second, and both, each with the counts of the first."""
    passes = replays.choices.passes
    both = replace(replays, choices=replays.choices.between(max(0, passes - MOST_PASSES), passes))
    first, second = both.halves()
    return first, second, replace(both, known=replace(first.known, future=both.choices))


def _can_be(name: str, replays: Replays) -> bool:
    try:
        registry.make(name, replays.known)
    except OptionError:
        return False
    return True


def _rows(recent: tuple[Replays, Replays, Replays], names: Sequence[str], budget: int) -> list[Replayed]:
    """The second half: of one that moves what it does there after the first. In threads: C++ leaves Python's lock."""
    first, second, both = recent

    def row(name: str) -> Replayed:
        if name in FIXED:
            return second.row(name, budget)
        return _rest(both.row(name, budget), first.row(name, budget))

    with ThreadPoolExecutor() as pool:
        return list(pool.map(row, names))


def _rest(whole: Replayed, start: Replayed) -> Replayed:
    """What came behind the start."""
    names = [field.name for field in fields(Counts)]
    counts = zip(names, astuple(whole.counts), astuple(start.counts), strict=True)
    return replace(
        whole, passes=whole.passes - start.passes, tokens=whole.tokens - start.tokens,
        counts=Counts(**{name: a - b for name, a, b in counts}),
        seconds=(whole.seconds or 0.0) - (start.seconds or 0.0),
    )  # fmt: skip


def _speed(row: Replayed) -> float:
    return row.tokens_per_s or 0.0


def _percent(gain: float) -> str:
    """With a sign, but for none."""
    return f"{round(gain, 3) + 0.0:+.1%}"


def _gain(row: Replayed, other: Replayed) -> float:
    return _speed(row) / _speed(other) - 1


def _simplest(rows: Sequence[Replayed]) -> Replayed:
    """The first of those that are as fast as the fastest."""
    fastest = max(map(_speed, rows))
    return next(row for row in rows if _speed(row) >= fastest * (1 - EQUAL))


def _reasons(best: Best) -> Iterator[str]:
    chosen, fixed, moving, top = best.chosen, best.fixed, best.moving, best.row(CEILING)
    stored = f", {chosen.counts.store_rate:.1%} on the second GPU" if chosen.counts.store_hits else ""
    yield (
        f"{best.choice} for {size(best.budget)}: {chosen.counts.hit_rate:.1%} of the choices hit{stored}, "
        f"{_speed(chosen):.1f} tokens/s are predicted"
    )
    yield f"all-ram has {_speed(best.row('all-ram')):.1f} tokens/s: {_percent(best.gain)}"
    if chosen is not fixed:
        yield f"{fixed.policy}, the best fixed placement, has {_speed(fixed):.1f}: {_percent(_gain(chosen, fixed))}"
    elif moving is not None:
        gain = f"{_percent(_gain(moving, fixed))}, and moving is to gain {GAIN:.0%}"
        yield f"{moving.policy}, the best that moves experts, has {_speed(moving):.1f}: {gain}"
    link = ", fewer: what it brings takes the link longer than it saves" if _speed(top) < _speed(chosen) else ""
    yield f"no policy hits more than {top.counts.hit_rate:.1%} (belady); that has {_speed(top):.1f} tokens/s{link}"
    if best.is_no_cache_as_good:
        yield f"no cache at all is as good: the best gains less than {GAIN:.0%} over all-ram"
    if best.more is not None:
        worth = "useless here" if best.is_more_useless else "worth it"
        gain = f"{_percent(_gain(best.more, chosen))} ({best.more.policy})"
        yield f"a bigger cache is {worth}: twice the budget gains {gain}"
    if chosen.passes < FEW_PASSES:
        yield f"only {chosen.passes} passes were compared: record more to be sure"
