"""How much of a layer's experts each machine should have, so that the slowest is done as early as can be.

A machine takes `fixed + share * whole` seconds for its share of a layer: the round trip and the cost of a hop, and what
reading all of the layer's chosen experts and sending all rows would take. Shares that end at the same time T are
(T - fixed) / whole; T is where they add up to 1, and a machine whose fixed time is above T gets nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

LEAST = 1e-6  # of one that is too slow to help: it takes what nobody else has room for


class Taker(NamedTuple):
    """Seconds of a machine for nothing at all, and on top for everything."""

    fixed: float
    whole: float


def shares(takers: Sequence[Taker], total: float = 1.0) -> list[float]:
    """By machine its share, in sum `total` but for the least ones."""
    there = sorted(range(len(takers)), key=lambda i: takers[i].fixed)
    end = 0.0
    for count in range(1, len(there) + 1):
        rates = [1 / takers[i].whole for i in there[:count]]
        starts = sum(takers[i].fixed * rate for i, rate in zip(there[:count], rates, strict=True))
        end = (total + starts) / sum(rates)
        if count == len(there) or end <= takers[there[count]].fixed:
            break
    return [max(LEAST, (end - one.fixed) / one.whole) for one in takers]


def with_rooms(takers: Sequence[Taker], rooms: Sequence[float]) -> list[float]:
    """The same where each has room for so much of all; what is too much for one goes to the others. The sum is below 1
    where all of them together have too little."""
    found, open_ones = [0.0] * len(takers), list(range(len(takers)))
    while open_ones:
        left = 1 - sum(found[i] for i in range(len(takers)) if i not in open_ones)
        each = dict(zip(open_ones, shares([takers[i] for i in open_ones], max(0.0, left)), strict=True))
        full = [i for i in open_ones if each[i] > rooms[i]]
        if not full:
            for i in open_ones:
                found[i] = each[i] if each[i] > LEAST else 0.0
            break
        for i in full:
            found[i] = rooms[i]
            open_ones.remove(i)
    return found
