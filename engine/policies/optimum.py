"""The best that any policy can do that brings experts when they are chosen: it knows the future.

Belady's rule with bypass: a missing expert comes if it is chosen again before one of the residents is, in place of the
one whose next use is farthest. Of experts of one size no policy has more hits; of several sizes nobody knows the best
in reasonable time, and this is a good one. Resident at the start are those that are chosen first. L. A. Belady, "A
study of replacement algorithms for virtual-storage computer", IBM Systems Journal 5 (1966).
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence, Set

from .protocol import Asked, Key, Moves, Shape

NEVER = 1 << 62


class Belady:
    """future: of every pass, by layer the experts that it will choose, each once."""

    name = "belady"

    def __init__(self, future: Iterable[Sequence[Sequence[int]]]) -> None:
        self.future = future

    def start(self, shape: Shape, budget: int) -> Iterable[Key]:
        self._look_ahead()
        self.shape, self.room, self.budget = shape, budget, budget
        self.farthest: list[tuple[int, Key]] = []  # minus the next use, of residents; old entries are passed over
        self.next: dict[Key, int] = {}  # of residents
        for key in sorted(self.uses, key=lambda key: self.uses[key][0]):
            if shape.expert_bytes[key[0]] <= self.room:
                self._keep(key)
        return list(self.next)

    def layer(self, asked: Asked) -> Moves:
        """Comers are admitted behind the layer, so that one that is chosen now may leave for them."""
        layer, admit, evict = asked.layer, [], []
        missing = set(asked.missing)
        for expert in asked.chosen:
            self.uses[layer, expert].popleft()
            if expert not in missing:
                self._keep((layer, expert))
        for expert in sorted(missing, key=lambda e: (self._next((layer, e)), e)):
            if (leaving := self._make_room((layer, expert))) is not None:
                evict += leaving
                admit.append(expert)
        return Moves(admit=tuple(admit), evict=tuple(evict))

    def resized(self, shape: Shape, budget: int, residents: Sequence[Set[int]]) -> Moves:
        """Those leave whose next use is farthest."""
        self.room += budget - self.budget
        self.budget, leaving = budget, []
        while self.room < 0:
            leaving.append(self._farthest())
            self.room += shape.expert_bytes[leaving[-1][0]]
            del self.next[leaving[-1]]
        return Moves(evict=tuple(leaving))

    def _farthest(self) -> Key:
        """Of the residents the one whose next use is farthest."""
        while True:
            use, key = heapq.heappop(self.farthest)
            if self.next.get(key) == -use:
                return key

    def _look_ahead(self) -> None:
        """When each expert will be chosen; times count layers of passes."""
        self.uses: defaultdict[Key, deque[int]] = defaultdict(deque)
        time = 0
        for step in self.future:
            for layer, chosen in enumerate(step):
                for expert in chosen:
                    self.uses[layer, expert].append(time)
                time += 1

    def _next(self, key: Key) -> int:
        return self.uses[key][0] if self.uses[key] else NEVER

    def _keep(self, key: Key) -> None:
        """Notes a resident's next use."""
        if key not in self.next:
            self.room -= self.shape.expert_bytes[key[0]]
        self.next[key] = self._next(key)
        heapq.heappush(self.farthest, (-self.next[key], key))

    def _make_room(self, key: Key) -> list[Key] | None:
        """Who leaves for one that comes, which is noted; None where it stays away, since all others are used before."""
        leaving: list[Key] = []
        room, size = self.room, self.shape.expert_bytes[key[0]]
        if (now := self._next(key)) == NEVER:
            return None
        while room < size:
            while self.farthest and self.next.get(self.farthest[0][1]) != -self.farthest[0][0]:
                heapq.heappop(self.farthest)
            if not self.farthest or -self.farthest[0][0] <= now:
                for other in leaving:
                    heapq.heappush(self.farthest, (-self.next[other], other))
                return None
            other = heapq.heappop(self.farthest)[1]
            leaving.append(other)
            room += self.shape.expert_bytes[other[0]]
        for other in leaving:
            self.room += self.shape.expert_bytes[other[0]]
            del self.next[other]
        self._keep(key)
        return leaving
