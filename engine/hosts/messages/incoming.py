"""Frames of a connection, read ahead: one call of the system brings header and body of a small one.

What is left of a large body comes straight into its own memory.
"""

from __future__ import annotations

import socket

from . import frames
from .frames import HEADER, Broken, Header, Kind

AHEAD = 20 << 10  # bytes that are asked for at a time: a copy of more costs more than a call


class Incoming:
    """Of a socket that nobody else reads, waiting or not."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.ahead = memoryview(bytearray(AHEAD))
        self.first = self.last = 0  # of `ahead`, what is read and not taken
        self.header: Header | None = None
        self.body, self.done = bytearray(), 0

    def take(self, limit: int | None = None) -> tuple[Header, bytearray] | None:
        """The next frame, if all of it is here; limit: bytes of rows that can be due. Raises Broken."""
        if self.header is None:
            if self.last - self.first < HEADER.size:
                return None
            end = self.first + HEADER.size
            self.header, self.first = frames.read_head(self.ahead[self.first : end], limit), end
            self.body, self.done = bytearray(self.header.length), 0
        count = min(len(self.body) - self.done, self.last - self.first)
        self.body[self.done : self.done + count] = self.ahead[self.first : self.first + count]
        self.first, self.done = self.first + count, self.done + count
        if self.done < len(self.body):
            return None
        found, self.header = self.header, None
        return found, self.body

    def fill(self) -> bool:
        """Reads once; whether more may be there already. To be called when `take` found nothing. Raises Broken at the
        end of the connection, OSError."""
        is_large = self.header is not None and len(self.body) - self.done >= AHEAD
        if is_large:
            space = memoryview(self.body)[self.done :]
            count = self.sock.recv_into(space)
            self.done += count
        else:
            left = bytes(self.ahead[self.first : self.last])  # of a header
            self.ahead[: len(left)] = left
            space = self.ahead[len(left) :]
            count = self.sock.recv_into(space)
            self.first, self.last = 0, len(left) + count
        if not count:
            raise Broken("the other side closed the connection")
        return count == len(space)

    def receive(self, *expected: Kind, limit: int | None = None) -> tuple[Header, bytearray]:
        """As `frames.receive`: waits for the next frame of one of these kinds."""
        while True:
            while (found := self.take(limit)) is None:
                self.fill()
            if frames.is_due(*found, expected):
                return found
