"""Who computes which expert: dealt out at the start, and anew when a host is lost.

    even        each host as many experts of a layer as the next
    auto        by the bandwidth that each node measured, the coordinator among them
    file        as a placement file says, host by host

Nobody gets more bytes than it has room for: what is too much goes to the others in the same proportion. Within a layer
experts are dealt in turn, so that every layer is spread over all nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ...errors import MemoryNeeded
from ..units import size

Owners = list[list[int]]  # by layer (of those with experts) and expert: the number of a node; 0: the coordinator


class Node(NamedTuple):
    """room: bytes of experts that it can hold; weight: its part of them, as a ratio to the others'."""

    name: str
    room: int
    weight: float


def deal(counts: Sequence[int], sizes: Sequence[int], nodes: Sequence[Node]) -> Owners:
    """Deals experts out; counts: of each layer; sizes: bytes of one expert. Raises MemoryNeeded where they do not fit
    into all nodes together."""
    total = sum(count * one for count, one in zip(counts, sizes, strict=True))
    shares = _shares(total, nodes, max(sizes))
    return [_turns(count, shares) for count in counts]


def _shares(total: int, nodes: Sequence[Node], largest: int) -> list[float]:
    """By node its part of all bytes, at most its room."""
    spare = largest * len(nodes)  # what dealing whole experts may put too much on one
    if sum(node.room for node in nodes if node.weight) < total:
        rooms = ", ".join(f"{node.name} {size(node.room)}" for node in nodes if node.weight)
        raise MemoryNeeded(
            f"the experts take {size(total)}, and the hosts have room for less ({rooms}): give more hosts (--hosts), "
            "or a smaller --expert-format"
        )
    shares, full = [0.0] * len(nodes), set[int]()
    while True:
        left = total - sum(shares[i] for i in full)
        weights = sum(node.weight for i, node in enumerate(nodes) if i not in full)
        over = False
        for i, node in enumerate(nodes):
            if i in full:
                continue
            shares[i] = left * node.weight / weights if weights else 0.0
            if shares[i] > max(0, node.room - spare) and len(full) < len(nodes) - 1 and node.weight:
                shares[i], over = float(max(0, node.room - spare)), True
                full.add(i)
        if not over:
            return shares


def _turns(count: int, shares: Sequence[float]) -> list[int]:
    """Each of so many experts to the node that is furthest behind its share."""
    total, given, found = sum(shares), [0] * len(shares), []
    for number in range(1, count + 1):
        behind = [number * share / total - had for share, had in zip(shares, given, strict=True)]
        node = behind.index(max(behind))
        given[node] += 1
        found.append(node)
    return found


def without(owners: Owners, lost: int, others: Sequence[Node], numbers: Sequence[int]) -> Owners:
    """Anew without a node: its experts to others, by weight, in turn. numbers: of the others."""
    weights = [max(node.weight, 1e-9) for node in others]
    found = []
    for row in owners:
        turns = iter(_turns(row.count(lost), weights))
        found.append([numbers[next(turns)] if owner == lost else owner for owner in row])
    return found
