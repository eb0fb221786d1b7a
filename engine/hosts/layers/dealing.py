"""Which layers a node holds: runs of neighbouring ones in the order of the nodes, dealt out at the start.

Of all ways to cut the layers it is the one whose fullest node is least full, measured against the node's weight: its
bandwidth, or the same for each. Nobody gets more than it has room for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from ....errors import MemoryNeeded
from ...model.segment import Run
from ...units import size
from ..sharing import Node


def deal(units: Sequence[Run], sizes: Sequence[int], nodes: Sequence[Node]) -> list[list[Run]]:
    """By node its layers, one run or none. units: runs that stay together; sizes: bytes of each layer. Raises
    MemoryNeeded where they do not fit."""
    ends = [0, *accumulate(sum(sizes[first:last]) for first, last in units)]
    best, cuts = [0.0, *[math.inf] * len(units)], []
    for node in nodes:
        found = [_best_start(best, ends, end, node) for end in range(len(ends))]
        best, starts = [one for one, _ in found], [start for _, start in found]
        cuts.append(starts)
    if best[-1] == math.inf:
        rooms = ", ".join(f"{node.name} {size(node.room)}" for node in nodes if node.weight)
        raise MemoryNeeded(
            f"the layers take {size(ends[-1])} with their cache, and the nodes have room for less ({rooms}): give more "
            "hosts (--hosts), a smaller --max-context, or a smaller --expert-format"
        )
    dealt: list[list[Run]] = []
    end = len(units)
    for starts in reversed(cuts):
        start = starts[end]
        dealt.append([] if start == end else [(units[start][0], units[end - 1][1])])
        end = start
    return dealt[::-1]


def _best_start(best: Sequence[float], ends: Sequence[int], end: int, node: Node) -> tuple[float, int]:
    """How full the fullest node is where this one holds the units up to `end`, and with which it begins. best: the same
    of those before it, by the number of units that they hold."""
    found = best[end], end
    for start in range(end - 1, -1, -1) if node.weight > 0 else ():
        held = ends[end] - ends[start]
        if held > node.room:
            break
        found = min(found, (max(best[start], held / node.weight), start))
    return found
