"""Server-sent events: an answer that grows, and a client that may leave.

The headers go out at once; a stream that is silent for a while shows that it lives. When the client leaves, whatever
makes the events is cancelled at once, also while it is silent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, MutableMapping
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",
}
ALIVE = b":\n\n"
DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


def event(data: Any, name: str | None = None) -> bytes:
    """One event with a JSON value."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + _encode(data) + b"\n\n"


class EventStream:
    """A response of events that `pieces` makes. ended: called when it is over, however, also where it never began."""

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        ended: Callable[[], None] = lambda: None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.pieces, self.ended, self.headers = pieces, ended, {**HEADERS, **(headers or {})}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = asyncio.ensure_future(self._write(send))
        watcher = asyncio.ensure_future(left(receive))
        try:
            await asyncio.wait({writer, watcher}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (writer, watcher):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await writer
            await self.pieces.aclose()
            self.ended()

    async def _write(self, send: Send) -> None:
        headers = [(name.encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for piece in self.pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def left(receive: Receive) -> None:
    """Returns when the client has gone."""
    while True:
        message: MutableMapping[str, Any] = await receive()
        if message["type"] == "http.disconnect":
            return
