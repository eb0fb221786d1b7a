"""The thread that reads pages and states back, a little ahead of those who put them into the cache."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .page_files import PAGE_KIND, STATE_KIND, PageFiles
from .writer import bytes_of

log = logging.getLogger("headrace")
AHEAD_BYTES = 64 << 20  # read and not yet in the cache


@dataclass(eq=False)
class Fetch:
    """Pages of one prompt that are being read, in their order, those of its last windows with their kind, and the state
    at their end. is_done: all that there is has come. is_queued: another one is first. held: pages of the cache that
    are kept for it."""

    pages: Sequence[bytes] = ()
    windows: Sequence[tuple[bytes, str]] = ()
    state: bytes | None = None
    is_done: bool = False
    is_queued: bool = False
    is_cancelled: bool = False
    held: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Arrived:
    """Something that was read: its bytes by part, each a tensor of bytes. digest None: the fetch is over."""

    fetch: Fetch
    digest: bytes | None
    kind: str
    parts: list[Tensor]


class Reader:
    """Reads. sizes: bytes of every part of a page, of a state, and of a page of each kind of windows."""

    def __init__(self, files: PageFiles, sizes: Mapping[str, Sequence[int]]) -> None:
        self.files = files
        self.sizes = sizes
        self.arrived: deque[Arrived] = deque()
        self.news = threading.Event()
        self._is_closed = False
        self._room = threading.Semaphore(max(2, AHEAD_BYTES // max(1, sum(sizes[PAGE_KIND]))))
        self._asked: queue.Queue[Fetch | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="headrace-kv-reader", daemon=True)
        self._thread.start()

    def ask(self, fetch: Fetch) -> None:
        """Lets pages be read, behind those that were asked for before."""
        self._asked.put(fetch)

    def take(self) -> list[Arrived]:
        """What has come since the last time."""
        self.news.clear()
        found = []
        while self.arrived:
            found.append(self.arrived.popleft())
            self._room.release()
        return found

    def close(self) -> None:
        """Ends the thread."""
        self._is_closed = True
        self._asked.put(None)

    def _run(self) -> None:
        while (fetch := self._asked.get()) is not None:
            try:
                self._read(fetch)
            except Exception:  # whoever waits for it goes on without
                log.exception("pages of the KV cache cannot be read")
            self._give(Arrived(fetch, None, "", []))

    def _read(self, fetch: Fetch) -> None:
        wanted = [*((one, PAGE_KIND) for one in fetch.pages), *fetch.windows]
        if fetch.state is not None:
            wanted.append((fetch.state, STATE_KIND))
        for digest, kind in wanted:
            parts = [torch.empty(size, dtype=torch.uint8) for size in self.sizes[kind]]
            if (
                self._is_closed
                or fetch.is_cancelled
                or not self.files.read(digest, kind, [bytes_of(one) for one in parts])
            ):
                return
            self._give(Arrived(fetch, digest, kind, parts))

    def _give(self, arrived: Arrived) -> None:
        while not self._room.acquire(timeout=1.0):
            if self._is_closed:
                return
        self.arrived.append(arrived)
        self.news.set()
