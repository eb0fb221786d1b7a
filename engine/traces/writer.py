"""Writes a trace in a thread of its own, so that no pass waits for it: packing, compressing and the disk are its work.

What it was given and did not write yet is bounded. A pass that would be too much is left out, and the file says how
many tokens are missing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, Generic, TypeVar

from ...errors import OptionError
from .. import writable
from .layout import BLOCK, DONE, LOST, Columns, Header, block

T = TypeVar("T")  # of a pass as it is given
log = logging.getLogger("headrace")
MOST_WAITING = 64 << 20  # bytes of passes that wait to be packed
BLOCK_BYTES = 1 << 20  # of choices, before a block is written
EVERY_S = 2.0  # or after so long, so that a run that is killed loses little
POLL_S = 0.2  # the thread looks this often: if each pass woke it, it would take a core from the kernels each time


class Writer(Generic[T]):
    """A file that is open. join: makes tokens of several passes that were given. Raises OptionError where it cannot be
    written."""

    def __init__(
        self, path: Path, header: Header, join: Callable[[list[T]], Columns], most_waiting: int = MOST_WAITING
    ) -> None:
        self.path, self.join, self.most_waiting = Path(path), join, most_waiting
        self.waiting: deque[T] = deque()
        self.size = 0  # bytes of what waits
        self.lost_tokens = self.lost_passes = 0  # and not yet told by the file
        self.tokens = self.passes = 0  # that the file has, or is about to have
        self.problem: OSError | None = None
        self.is_closing = threading.Event()
        self.lock = threading.Lock()
        try:
            self.file: IO[bytes] = self.path.open("wb")
            self.file.write(header.as_bytes())
            self.file.flush()
        except OSError as error:
            raise writable.refusal(path, "the trace", error) from error
        self.thread = threading.Thread(target=self._run, name="headrace-trace", daemon=True)
        self.thread.start()

    def put(self, one: T, tokens: int, size: int) -> None:
        """Takes a pass of so many tokens, which holds `size` bytes."""
        with self.lock:
            if self.problem is not None or self.is_closing.is_set():
                return
            if self.size + size > self.most_waiting:
                self.lost_tokens, self.lost_passes = self.lost_tokens + tokens, self.lost_passes + 1
                return
            self.waiting.append(one)
            self.size += size

    def close(self) -> None:
        """Writes what waits and the end. Raises OptionError where the file has not all of it."""
        self.is_closing.set()
        self.thread.join()
        if self.problem is not None:
            raise writable.refusal(self.path, "the trace", self.problem) from self.problem

    # ---- in the thread

    def _run(self) -> None:
        try:
            is_last = False
            while not is_last:
                is_last = self._write_some()
            self.file.write(BLOCK.pack(DONE, self.tokens, self.passes, 0, 0))
            self.file.close()
        except OSError as error:
            with self.lock:
                self.problem = error
                self.waiting.clear()
            log.warning(
                "the trace %s cannot be written any more: %s; the run goes on without", self.path, error.strerror
            )

    def _write_some(self) -> bool:
        """Collects passes for a block and writes it; whether it was the last."""
        found: list[Columns] = []
        held, passes, is_last, end = 0, 0, False, time.monotonic() + EVERY_S
        while held < BLOCK_BYTES and time.monotonic() < end and not is_last:
            is_last = self.is_closing.wait(POLL_S)
            with self.lock:
                many, size = list(self.waiting), self.size
                self.waiting.clear()
            if many:
                found.append(self.join(many))
                held, passes = held + found[-1].choices.nbytes, passes + len(many)
            with self.lock:
                self.size -= size
        if found:
            self.file.write(block(found, passes))
            self.tokens += sum(len(one.passes) for one in found)
            self.passes += passes
        with self.lock:
            tokens, lost = self.lost_tokens, self.lost_passes
            self.lost_tokens = self.lost_passes = 0
        if lost:
            self.file.write(BLOCK.pack(LOST, tokens, lost, 0, 0))
        self.file.flush()
        return is_last


def check(path: Path) -> None:
    """Raises OptionError if a trace cannot be written there: before a model is loaded, not after. A file that holds
    something stays: nobody can record the same run again."""
    if Path(path).is_dir():
        raise OptionError(f"cannot write the trace to {path}: it is a directory; name a file")
    if Path(path).is_file() and Path(path).stat().st_size:
        raise OptionError(f"cannot write the trace to {path}: there is a file already; remove it, or name another")
    writable.check(Path(path), "the trace")
