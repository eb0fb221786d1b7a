"""Reads that are queued and carried out by a few threads: what a layer waits for first, then what comes ahead.

A disk gives its full rate only to several reads at a time. One expert is a `Reading` of several steps, of which each
thread takes the next; an error ends it, and whoever needs the expert raises that.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import torch

THREADS = 4
SLOW_S = 10.0
Step = Callable[[], None]
log = logging.getLogger("headrace")


class Reading:
    """An expert on its way. name: for people. left: steps that are not done; running: those that a thread is at."""

    def __init__(self, name: str, steps: Sequence[Step]) -> None:
        self.name, self.steps = name, deque(steps)
        self.left, self.running = len(self.steps), 0
        self.error: BaseException | None = None

    @property
    def is_done(self) -> bool:
        """Whether nothing of it will happen any more: all is there, or an error ended it."""
        return not self.running and (not self.left or self.error is not None)


class Reads:
    """The threads and their two queues. All calls come from one thread."""

    def __init__(self, threads: int = THREADS) -> None:
        self.now, self.ahead = deque[Reading](), deque[Reading]()
        self.lock = threading.Lock()
        self.work, self.arrived = threading.Condition(self.lock), threading.Condition(self.lock)
        self.is_closed = False
        self.threads = [
            threading.Thread(target=self._run, name=f"headrace-disk-{n}", daemon=True) for n in range(threads)
        ]
        for thread in self.threads:
            thread.start()

    def start(self, reading: Reading, is_ahead: bool = False) -> None:
        """Queues it. is_ahead: behind all that a layer waits for."""
        with self.lock:
            (self.ahead if is_ahead else self.now).append(reading)
            self.work.notify(len(reading.steps))

    def hurry(self, reading: Reading) -> None:
        """A layer waits for it now."""
        with self.lock:
            if reading in self.ahead:
                self.ahead.remove(reading)
                self.now.append(reading)

    def stop(self, reading: Reading) -> None:
        """Nobody needs it any more: returns when no thread writes into its place."""
        with self.lock:
            for queue in (self.now, self.ahead):
                if reading in queue:
                    queue.remove(reading)
            reading.left -= len(reading.steps)
            reading.steps.clear()
            while reading.running:
                self.arrived.wait()

    def wait(self, readings: Iterable[Reading]) -> list[Reading]:
        """Waits until one of these is done at least; those that are."""
        known = list(readings)
        with self.lock:
            while not (done := [one for one in known if one.is_done]):
                if not self.arrived.wait(SLOW_S):
                    log.warning("the disk has not answered for %.0f s: %s", SLOW_S, known[0].name)
            return done

    def close(self) -> None:
        """Ends the threads after the step that each is at."""
        with self.lock:
            self.is_closed = True
            self.work.notify_all()
        for thread in self.threads:
            thread.join()

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            reading, step = taken
            try:
                with torch.inference_mode():
                    step()
                error = None
            except BaseException as raised:  # whatever it is, nobody may wait for ever
                error = raised
            self._end(reading, error)

    def _take(self) -> tuple[Reading, Step] | None:
        """The next step, waiting for one; None: the end."""
        with self.lock:
            while not self.is_closed and not self.now and not self.ahead:
                self.work.wait()
            if self.is_closed:
                return None
            queue = self.now or self.ahead
            reading = queue[0]
            step = reading.steps.popleft()
            if not reading.steps:
                queue.popleft()
            reading.running += 1
            return reading, step

    def _end(self, reading: Reading, error: BaseException | None) -> None:
        with self.lock:
            reading.running -= 1
            reading.left -= 1
            if error is not None and reading.error is None:
                reading.error = error
                for queue in (self.now, self.ahead):
                    if reading in queue:
                        queue.remove(reading)
            if not reading.running:
                self.arrived.notify_all()
