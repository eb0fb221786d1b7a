"""Sides that take turns: A B C A B C ..., each starting when the process is quiet.

A machine drifts by more than the differences that are looked for, so sides are compared within a round, and the median
over rounds is taken of rates and of ratios. Threads of one side that still spin would slow the next: `quiet` waits
until the process takes no processor time. Knows nothing of models.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from headrace.engine.measure.other_load import Strangers

__all__ = ["Strangers", "medians", "quiet", "ratio", "significant", "take_turns"]

STEP_S = 0.02
LIMIT_S = 2.0

Sides = dict[str, Callable[[int], float]]  # name -> measure(round): a rate, higher is better
Rates = dict[str, list[float]]  # name -> one rate a round


def quiet() -> float:
    """Waits until this process, asleep, uses less than a tenth of one core; seconds waited. A process that does not
    come to rest within LIMIT_S would spoil what is measured, so that is an error."""
    start = time.perf_counter()
    while time.perf_counter() - start < LIMIT_S:
        wall, used = time.perf_counter(), time.process_time()
        time.sleep(STEP_S)
        if time.process_time() - used < 0.1 * (time.perf_counter() - wall):
            return time.perf_counter() - start
    raise RuntimeError(f"threads of this process still spin {LIMIT_S} s after their work: nothing can be compared")


def take_turns(sides: Sides, rounds: int) -> Rates:
    """Every side once unmeasured, then `rounds` times in turn."""
    rates: Rates = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, measure in sides.items():
            quiet()
            rate = measure(turn)
            if turn:
                rates[name].append(rate)
        if turn:
            print(f"  round {turn}: " + ", ".join(f"{name} {many[-1]:.4g}" for name, many in rates.items()), flush=True)
    return rates


def medians(rates: Rates) -> dict[str, float]:
    """The median of every side that was measured."""
    return {name: significant(statistics.median(many)) for name, many in rates.items() if many}


def ratio(rates: Rates, ours: str, theirs: str) -> float | None:
    """The median over rounds of ours / theirs; None where one of them was not measured."""
    pairs = list(zip(rates.get(ours, []), rates.get(theirs, []), strict=False))
    return significant(statistics.median(a / b for a, b in pairs)) if pairs else None


def significant(value: float, digits: int = 4) -> float:
    """Rounded to significant digits."""
    return float(f"{value:.{digits}g}")
