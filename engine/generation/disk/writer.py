"""The thread that writes pages and states, beside the passes.

What is to be written is a place in the cache, not a copy: the queue holds no memory, and a pass puts something into it
in microseconds. The thread copies a page and then looks whether it still is the same one; one that was taken for
another prompt meanwhile is left out. A full queue leaves out more: when a prompt is used again, what is missing comes
again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .page_files import PageFiles

log = logging.getLogger("headrace")
MOST_WAITING = 16384  # pages
NICE = 10  # how much the thread gives way to others
END_S = 60.0  # for what waits when the model is closed


@dataclass(frozen=True)
class Item:
    """A page or state. parts: its views; is_same: whether they still hold what they held."""

    digest: bytes
    kind: str
    parts: Callable[[], list[Tensor]]
    is_same: Callable[[], bool]
    before: bytes | None


class Writer:
    """Writes to files until it is closed, or the disk refuses."""

    def __init__(self, files: PageFiles) -> None:
        self.files = files
        self.is_on = True
        self.written = 0
        self._queue: queue.Queue[Item | None] = queue.Queue(MOST_WAITING)
        self._waiting: set[tuple[bytes, str]] = set()
        self._thread = threading.Thread(target=self._run, name="headrace-kv-writer", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Lets something be written, unless it is already there, or too much waits."""
        name = item.digest, item.kind
        if not self.is_on or name in self._waiting or self.files.has(*name):
            return
        self._waiting.add(name)
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._waiting.discard(name)

    def flush(self, timeout: float = END_S) -> None:
        """Waits until all that waits now is written."""
        end = time.monotonic() + timeout
        while self._waiting and time.monotonic() < end:
            time.sleep(0.002)

    def close(self) -> None:
        """Writes what waits, and ends the thread."""
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=END_S)
            self._thread.join(END_S)
        self.files.stamp()

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while (item := self._queue.get()) is not None:
            try:
                self._write(item)
            except OSError as error:
                self.is_on = False
                log.warning(
                    "the KV cache in %s is no longer written: %s; what is there is still read",
                    self.files.folder, error.strerror or error,
                )  # fmt: skip
            except Exception:  # a thread that ends would say so nowhere
                self.is_on = False
                log.exception("the KV cache in %s is no longer written", self.files.folder)
            finally:
                self._waiting.discard((item.digest, item.kind))

    def _write(self, item: Item) -> None:
        if not self.is_on or not item.is_same():
            return
        copies = [host_copy(part) for part in item.parts()]
        if item.is_same():
            self.files.write(item.digest, item.kind, [bytes_of(one) for one in copies], item.before)
            self.written += 1


def host_copy(part: Tensor) -> Tensor:
    """A copy in RAM: uint8, one dimension."""
    return torch.empty(part.shape, dtype=part.dtype).copy_(part).reshape(-1).view(torch.uint8)


def bytes_of(flat: Tensor) -> memoryview:
    """The memory of a tensor of bytes in RAM."""
    return flat.numpy().data
