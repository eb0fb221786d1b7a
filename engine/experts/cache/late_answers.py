"""A policy that is asked about a pass while the next one runs, for passes that are graphs: nothing can come into one.

    pass n          finds what the answers up to that for pass n - 2 left
    meanwhile       pass n - 1 is counted by what it found, and the policy answers for it
    behind pass n   the answer is carried out: pass n + 1 finds what has arrived of it

A pass by hand among them, a prompt beside text, goes by the same rule, so that a replay can follow. So nothing of the
policy costs time of a pass but what it starts: copies, and a table of a few kilobytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from ...policies.protocol import Key
from ...policies.residents import Counts, Residents, Snapshot

Choices = list[tuple[int, tuple[int, ...]]]  # by layer with experts what a pass chose, each expert once


class LateAnswers:
    """Passes that the policy was not asked about yet; `counts` grows by what they did."""

    def __init__(self, residents: Residents, counts: Counts) -> None:
        self.residents, self.counts = residents, counts
        self.passes: deque[tuple[int, Callable[[], Choices]]] = deque()
        self.uncounted: tuple[Callable[[], Choices], Snapshot | None] | None = None  # the last pass, if it is that
        self.by_hand: Choices = []  # of the pass that runs, whose layers come one by one
        self.leaving: list[Key] = []
        self.coming: list[Key] = []

    def begin(self, is_graph: bool) -> None:
        """Another pass: the policy is asked about all but the one before it. Before a graph nothing else is done: the
        rest waits until it runs."""
        if len(self.passes) > 1 or not is_graph:
            self._count()
        self.by_hand = []
        while len(self.passes) > 1:
            self._ask()

    def settle(self) -> None:
        """Something is to happen between two passes: all is asked and counted that a replay has asked and counted
        before the next pass."""
        self._count()
        while len(self.passes) > 1:
            self._ask()

    def layer(self, step: int, layer: int, chosen: tuple[int, ...]) -> None:
        """A layer of a pass by hand has chosen."""
        if not self.by_hand:
            choices = self.by_hand
            self.over(step, lambda: choices, None)
        self.by_hand.append((layer, chosen))

    def meanwhile(self) -> Snapshot:
        """A graph runs: the policy answers for the pass before it. What was resident when it began."""
        self._count()
        then = self.residents.snapshot()
        while self.passes:
            self._ask()
        return then

    def over(self, step: int, choices: Callable[[], Choices], then: Snapshot | None) -> None:
        """A pass is over, or begins by hand; then: what was resident when it began, if that may have changed since."""
        assert self.uncounted is None, "a pass that was not counted"
        self.passes.append((step, choices))
        self.uncounted = choices, then

    def take(self) -> tuple[Sequence[Key], Sequence[Key]]:
        """What is to leave now, and what to come."""
        found = self.leaving, self.coming
        self.leaving, self.coming = [], []
        return found

    def _count(self) -> None:
        if self.uncounted is not None:
            choices, then = self.uncounted
            self.uncounted = None
            for layer, chosen in choices():
                self.counts.add(self.residents.count(layer, chosen, then))

    def _ask(self) -> None:
        """The policy answers for the pass that is the longest over."""
        step, choices = self.passes.popleft()
        for layer, chosen in choices():
            moves, counts = self.residents.answer(step, layer, chosen)
            self.counts.add(counts)
            for key in moves.evict:
                (self.coming.remove if key in self.coming else self.leaving.append)(key)
            self.coming += [*((layer, expert) for expert in moves.admit), *moves.prefetch]
