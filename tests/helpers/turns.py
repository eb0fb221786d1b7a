"""Test runs in several processes (`pytest -n 2`): tests that measure time or use every core have the machine alone.

Everybody holds a shared lock during a test, a test marked `alone` an exclusive one. Who waits for it keeps the
turnstile, so that others let him in after their test.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

LOCKS = Path(__file__).parents[2] / "build" / "tests"


@contextlib.contextmanager
def turn(alone: bool) -> Iterator[None]:
    """A test's time, beside others or alone; nothing where there is one process."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    LOCKS.mkdir(parents=True, exist_ok=True)
    with (LOCKS / "turnstile").open("w") as turnstile, (LOCKS / "room").open("w") as room:
        fcntl.flock(turnstile, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(turnstile, fcntl.LOCK_UN)
        yield
