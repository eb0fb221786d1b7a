"""A connection's round trip and rate, measured over itself while a host joins: frames that come back as they went."""

from __future__ import annotations

import socket
import time
from typing import NamedTuple

from ..messages import frames
from ..messages.frames import Kind

TRIPS, SECONDS = 16, 0.25  # at most: of the trips, and of the rate
FIRST, FACTOR, MOST = 4 << 10, 4, 4 << 20  # bytes of the echoes
TIMES = 3  # that the largest one is sent: some wait for a core


class LinkRate(NamedTuple):
    """round_trip: seconds of an empty frame there and back, of the fastest quarter the slowest, since what is slower
    waited for a core; bytes_s: of one direction, the most that the largest echo had: small ones may go at once on lines
    that let bursts through, as rented ones do."""

    round_trip: float
    bytes_s: float


def measure(sock: socket.socket) -> LinkRate:
    """Half a second at most, and one echo more on a link that is slower. Raises Broken, OSError."""
    trips: list[float] = []
    end = time.perf_counter() + SECONDS
    _trip(sock, b"")  # the other side may have been asleep
    while len(trips) < TRIPS and (not trips or time.perf_counter() < end):
        trips.append(_trip(sock, b""))
    round_trip = sorted(trips)[(len(trips) - 1) // 4]
    size, end = FIRST, time.perf_counter() + SECONDS
    took = _trip(sock, bytes(size))
    while size < MOST and took < SECONDS / FACTOR and time.perf_counter() < end:
        size *= FACTOR
        took = _trip(sock, bytes(size))
    fastest = took
    for _ in range(TIMES - 1):
        if time.perf_counter() + took < end:
            fastest = min(fastest, _trip(sock, bytes(size)))
    return LinkRate(round_trip, 2 * size / max(fastest - min(trips), fastest / 10))


def _trip(sock: socket.socket, body: bytes) -> float:
    """Seconds of a frame there and back."""
    start = time.perf_counter()
    frames.send(sock, Kind.PING, body)
    frames.receive(sock, Kind.PONG)
    return time.perf_counter() - start


def receive(sock: socket.socket, kind: Kind) -> bytearray:
    """The host's side: the body of a frame of this kind, and before it every echo that is asked for. Raises Broken,
    OSError."""
    while True:
        header, body = frames.receive(sock, kind, Kind.PING)
        if header.kind is kind:
            return body
        frames.send(sock, Kind.PONG, bytes(body))
