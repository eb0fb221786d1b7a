"""Whose turn it is to run a pass: a lock that is given to those who wait in the order in which they came.

Python's own lock is often taken again by the thread that just left it, so that of two threads that generate one would
starve.
"""

from __future__ import annotations

import os
import threading
from collections import deque

from ...errors import HeadraceError


class Turn:
    """A lock for the process that made it; the thread that has it may take it again. A forked child has neither the
    threads of a model, nor whoever would end the pass that was under way: there it raises HeadraceError, instead of
    waiting for ever."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._guard = threading.Lock()
        self._owner: int | None = None
        self._depth = 0
        self._queue: deque[tuple[int, threading.Lock]] = deque()

    @property
    def is_elsewhere(self) -> bool:
        """Whether this is another process than the one that made it."""
        return os.getpid() != self.process

    def check(self) -> None:
        """Raises HeadraceError in another process."""
        if self.is_elsewhere:
            raise HeadraceError(
                f"this model was loaded by process {self.process}, of which {os.getpid()} is a fork: start processes "
                "by spawn (multiprocessing.get_context('spawn')), or load the model in the child"
            )

    def check_outermost(self) -> None:
        """Raises HeadraceError where the thread that has it took it before: what a pass calls asks for a pass."""
        if self._depth > 1:
            raise HeadraceError(
                "a sampler asked its own model for text, within the pass that it was called by: ask between passes, or "
                "another LLM"
            )

    def __enter__(self) -> None:
        self.check()
        me = threading.get_ident()
        with self._guard:
            if self._owner in (None, me):
                self._owner, self._depth = me, self._depth + 1
                return
            place = (me, threading.Lock())
            place[1].acquire()
            self._queue.append(place)
        try:
            place[1].acquire()
        except BaseException:  # Ctrl-C while waiting
            self._give_up(place)
            raise

    def __exit__(self, *error: object) -> None:
        with self._guard:
            self._depth -= 1
            if self._depth == 0:
                self._hand_over()

    def _hand_over(self) -> None:
        """Gives the turn to the first who waits; the guard is held."""
        self._owner = None
        if self._queue:
            self._owner, gate = self._queue.popleft()
            self._depth = 1
            gate.release()

    def _give_up(self, place: tuple[int, threading.Lock]) -> None:
        """Leaves the queue; a turn that was given meanwhile goes on to the next."""
        with self._guard:
            if place in self._queue:
                self._queue.remove(place)
            else:
                self._depth = 0
                self._hand_over()
