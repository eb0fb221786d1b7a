"""Runs a function over items in a few threads, a little ahead, and hands the results back in order.

Loading uses it to read from disk while the CPU packs what was read. The number in flight is bounded, and so is memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
READERS = 2
AHEAD = 6


def in_order(items: Iterable[Item], work: Callable[[Item], Result]) -> Iterator[tuple[Item, Result]]:
    """Yields (item, work(item)) in the order of `items`; an exception of `work` is raised at its item."""
    pending: deque[tuple[Item, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(READERS)
    try:
        for item in items:
            pending.append((item, pool.submit(work, item)))
            if len(pending) >= AHEAD:
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
