"""Snapshots of the engine for whoever looks: made a few times a second, once for all, and never when nobody does.

The engine gives nothing to this but its ledger, which it keeps anyway. While there are viewers one task reads what is
new there, in another thread, and what a pass should have taken is worked out then. No snapshot waits for a pass: no
lock of the loop is taken, and numbers may be those of a pass before.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from .. import sse
from ..handlers.about import slot
from ..service import Service
from ..wire.errors import ApiError
from . import about_model
from .passes import HISTORY, Rows, as_json, newest, window
from .totals import Totals

PERIOD_S = 0.2
MOST_VIEWERS = 8
MOST_ROWS = 32  # of a snapshot; of a model that makes more passes in that time the newest
MOST_UNREAD = 50  # snapshots that a viewer may be behind, after which it is gone or too slow
WINDOW = 64  # tokens that are held against their prediction
PAGES_EVERY = 5  # snapshots; owners of pages are counted one by one


class Live:
    """Everyone who looks at a model, and what they are shown. misses: by id of a request where its prompt parted from
    an earlier one."""

    def __init__(self, service: Service, misses: Mapping[int, str]) -> None:
        self.service, self.totals, self.misses = service, Totals(), misses
        self.facts = about_model.Facts(service)
        self.rows = Rows(service.llm.parts.memory_plan.experts)
        self.viewers: set[asyncio.Queue[bytes]] = set()
        self.snapshots = 0  # that were made so far
        self._seen = 0  # index of the first pass that no snapshot has
        self._kv: dict[str, Any] = {}
        self._task: asyncio.Task[None] | None = None
        service.ended.append(self.totals.end)

    def watch(self) -> AsyncGenerator[bytes, None]:
        """Events for one viewer: what the model is, the last passes, then snapshots. Raises ApiError where too many
        look already."""
        if len(self.viewers) >= MOST_VIEWERS:
            raise ApiError(
                429, f"{MOST_VIEWERS} pages look already: close one", code="too_many_viewers",
                headers={"retry-after": "10"},
            )  # fmt: skip
        return self._events()

    async def _events(self) -> AsyncGenerator[bytes, None]:
        queue: asyncio.Queue[bytes] = asyncio.Queue(MOST_UNREAD)
        if not self.viewers:
            self._begin()
        self.viewers.add(queue)
        try:
            yield sse.event(self.facts.of_run(), "hello")
            yield await asyncio.to_thread(self._history)
            while queue in self.viewers:
                yield await queue.get()
        finally:
            self.viewers.discard(queue)

    def _begin(self) -> None:
        """The first viewer has come."""
        if self._task is None or self._task.done():
            self.totals.forget_rates()
            self._seen = self.service.llm.ledger.account.count
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        """Makes snapshots as long as somebody looks."""
        while self.viewers and not self.service.is_closing:
            made = self._snapshot()
            data = await asyncio.to_thread(self._finish, made)
            for viewer in list(self.viewers):
                with contextlib.suppress(asyncio.QueueFull):
                    viewer.put_nowait(data)
                    continue
                self.viewers.discard(viewer)
            await asyncio.sleep(PERIOD_S)
        for viewer in list(self.viewers):  # the server stops
            self.viewers.discard(viewer)
            with contextlib.suppress(asyncio.QueueFull):
                viewer.put_nowait(sse.event({}, "end"))

    # ---- what is in them

    def _snapshot(self) -> dict[str, Any]:
        """What is known in the thread of handlers."""
        service, now = self.service, time.monotonic()
        generations = list(service.open.values())
        if not generations:
            service.llm.ledger.settle()  # a last pass that waits for the next one to be booked
        queue = [about_model.queued(slot(one), one) for one in generations]
        return {
            "t": round(time.time(), 3),
            "up_s": round(time.time() - service.started, 1),
            "running": sum(one["phase"] != "waiting" for one in queue),
            "waiting": sum(one["phase"] == "waiting" for one in queue),
            **self.totals.now(generations, now),
            "queue": queue,
            "ended_last": [{**one, "miss": self.misses.get(one["id"])} for one in self.totals.recent],
        }

    def _finish(self, made: dict[str, Any]) -> bytes:
        """Adds what the ledger has, in another thread; one encoding for all."""
        account = self.service.llm.ledger.account
        first, self._seen = self._seen, account.count
        passes = newest(account.recent, first, MOST_ROWS)
        if passes:
            self._seen = passes[-1].index + 1
        if self.snapshots % PAGES_EVERY == 0 or not self._kv:
            self._kv = about_model.pages(self.service)
        self.snapshots += 1
        made |= {"kv": self._kv, "passes": self.rows.of(passes), "heat": self.rows.heat(passes)}
        made |= {"left_out": max(0, self._seen - first - len(passes)), "columns": self.rows.columns}
        return sse.event(made | self._truth(), "tick")

    def _truth(self) -> dict[str, Any]:
        """The last tokens against what they should have taken, and the sentence about it."""
        recent = newest(self.service.llm.ledger.account.recent, 0, WINDOW)
        found = window(recent, WINDOW)
        return {
            "window": None if found is None else as_json(found),
            "sentence": self.facts.sentence(found),
        }

    def _history(self) -> bytes:
        """The last passes, for a viewer who comes."""
        passes = newest(self.service.llm.ledger.account.recent, 0, HISTORY)
        made = {"passes": self.rows.of(passes), "heat": self.rows.heat(passes), "columns": self.rows.columns}
        return sse.event(made, "history")
