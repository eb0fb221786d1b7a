"""Test runs in several processes (`pytest -n 2`): tests that measure time or use every core have the machine alone.

Everybody holds a shared lock during a test, a test marked `alone` an exclusive one. Who waits for it keeps the
turnstile, so that others let him in after their test. Tests that a test runs in another process have its turn: they
would wait behind the turnstile for who waits for the test.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

HELD = "HEADRACE_HAS_TURN"  # set for processes that a test starts
LOCKS = Path(__file__).parents[2] / "build" / "tests"


@contextlib.contextmanager
def turn(alone: bool) -> Iterator[None]:
    """A test's time, beside others or alone; nothing where there is one process."""
    if "PYTEST_XDIST_WORKER" not in os.environ or HELD in os.environ:
        yield
        return
    LOCKS.mkdir(parents=True, exist_ok=True)
    with (LOCKS / "turnstile").open("w") as turnstile, (LOCKS / "room").open("w") as room:
        fcntl.flock(turnstile, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(turnstile, fcntl.LOCK_UN)
        os.environ[HELD] = "1"
        try:
            yield
        finally:
            os.environ.pop(HELD, None)
