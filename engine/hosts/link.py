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
from .messages.frames import Header, Kind
from .messages.incoming import Incoming


class Link:
    """name: of the host; room: bytes of RAM that it has beside its share;
    figures: what it and its link were measured to do. heard: when bytes moved last, by the clock of
    `time.monotonic`."""

    def __init__(self, sock: socket.socket, name: str, room: int, figures: Figures) -> None:
        sock.setblocking(False)
        self.figures = figures
        self.sock, self.name, self.room = sock, name, room
        self.out = deque[memoryview]()
        self.incoming = Incoming(sock)
        self.heard, self.limit = time.monotonic(), 0

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
        may_be_more = True
        while True:
            while (found := self.incoming.take(self.limit)) is not None:
                header, body = found
                if header.kind is Kind.REFUSED:
                    raise frames.refusal(body)
                if header.kind is not Kind.ALIVE:
                    yield header, body
            if not may_be_more:
                return
            try:
                may_be_more = self.incoming.fill()
            except BlockingIOError:
                return
            self.heard = time.monotonic()

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
