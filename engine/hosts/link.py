"""A coordinator's end of the connection to one host: what is to be sent, and what has come, without waiting for
either."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import deque
from collections.abc import Iterator

from .joining.figures import Figures
from .messages import frames
from .messages.frames import HEADER, Broken, Header, Kind


class Link:
    """name: of the host; generation: how many had joined when it did; room: bytes of RAM that it has beside its share;
    figures: what it and its link were measured to do. heard: when bytes moved last, by the clock of
    `time.monotonic`."""

    def __init__(self, sock: socket.socket, name: str, generation: int, room: int, figures: Figures) -> None:
        sock.setblocking(False)
        self.figures = figures
        self.sock, self.name, self.generation, self.room = sock, name, generation, room
        self.out = deque[memoryview]()
        self.start = bytearray(HEADER.size)
        self.header: Header | None = None
        self.body = bytearray()
        self.done, self.heard, self.limit = 0, time.monotonic(), 0

    def fileno(self) -> int:
        return self.sock.fileno()

    def queue(self, parts: list[memoryview]) -> None:
        """To be sent after what is queued already."""
        if not self.out:
            self.heard = time.monotonic()
        if sum(map(len, parts)) < 1 << 16:
            parts = [memoryview(b"".join(parts))]
        self.out.extend(part for part in parts if len(part))

    def write(self) -> bool:
        """Sends what the system takes; whether all is sent. Raises OSError."""
        while self.out:
            try:
                count = self.sock.send(self.out[0])
            except BlockingIOError:
                return False
            self.heard = time.monotonic()
            if count == len(self.out[0]):
                self.out.popleft()
            else:
                self.out[0] = self.out[0][count:]
        return True

    def read(self) -> Iterator[tuple[Header, bytearray]]:
        """The frames that are there as a whole. Raises Broken, OSError."""
        while True:
            into = self.start if self.header is None else self.body
            if self.done < len(into):
                try:
                    count = self.sock.recv_into(memoryview(into)[self.done :])
                except BlockingIOError:
                    return
                if not count:
                    raise Broken("it closed the connection")
                self.heard = time.monotonic()
                self.done += count
                if self.done < len(into):
                    continue
            if self.header is None:
                self.header = frames.read_head(self.start, self.limit)
                self.body, self.done = bytearray(self.header.length), 0
                continue
            header, body = self.header, self.body
            self.header, self.done = None, 0
            if header.kind is Kind.REFUSED:
                raise frames.refusal(body)
            if header.kind is not Kind.ALIVE:
                yield header, body

    @property
    def is_gone(self) -> bool:
        """Whether the other side has ended the connection, as far as the system knows."""
        try:
            return self.sock.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.close()
