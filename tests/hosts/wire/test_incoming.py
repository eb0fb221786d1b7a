"""Frames that are read ahead: in any pieces, small and large ones, with what may be due and what may not."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from headrace.engine.hosts.joining.figures import Figures
from headrace.engine.hosts.link import Link
from headrace.engine.hosts.messages import frames
from headrace.engine.hosts.messages.frames import HEADER, Broken, Kind, Refused
from headrace.engine.hosts.messages.incoming import AHEAD, Incoming

Pair = tuple[socket.socket, socket.socket]
SIZES = (0, 1, HEADER.size, AHEAD - HEADER.size, AHEAD - HEADER.size + 1, AHEAD, 3 * AHEAD + 7, 5)


def frame(size: int, kind: Kind = Kind.ROWS, call: int = 0) -> bytes:
    return frames.head(kind, size, 1, call) + bytes(number % 251 for number in range(size))


@pytest.fixture
def pair() -> Iterator[Pair]:
    here, there = socket.socketpair()
    with here, there:
        for one in (here, there):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        yield here, there


@pytest.mark.parametrize("piece", [1, HEADER.size - 1, HEADER.size + 3, 1000, AHEAD + 5])
def test_in_any_pieces(piece: int, pair: Pair) -> None:
    """Every frame comes whole, in order, and not before its last byte is there."""
    here, there = pair
    here.setblocking(False)
    found, reader = [], Incoming(here)
    sizes = [size for size in SIZES if piece > 100 or size < 100]
    data = b"".join(frame(size, call=number) for number, size in enumerate(sizes))
    sent = 0
    for first in range(0, len(data), piece):
        there.sendall(data[first : first + piece])
        sent += len(data[first : first + piece])
        more = True
        while more:
            while (one := reader.take()) is not None:
                found.append(one)
            try:
                more = reader.fill()
            except BlockingIOError:
                more = False
        while (one := reader.take()) is not None:
            found.append(one)
        whole = [sum(HEADER.size + size for size in sizes[: number + 1]) for number in range(len(sizes))]
        assert len(found) == sum(end <= sent for end in whole)
    assert [(header.call, bytes(body)) for header, body in found] == [
        (number, frame(size)[HEADER.size :]) for number, size in enumerate(sizes)
    ]


def test_one_call_for_a_small_frame(pair: Pair) -> None:
    """Two small frames that are there are read by one call of the system, after which nothing is asked for."""
    here, there = pair
    there.sendall(frame(100) + frame(50))
    calls = 0

    class Counted:
        def recv_into(self, space: memoryview) -> int:
            nonlocal calls
            calls += 1
            return here.recv_into(space)

        def setblocking(self, on: bool) -> None:
            here.setblocking(on)

    link = Link(Counted(), "h", 0, Figures(1.0, {}, None))  # type: ignore[arg-type]
    link.limit = 1000
    assert [len(body) for _, body in link.read()] == [100, 50]
    assert calls == 1
    assert list(link.read()) == []


def test_what_may_not_come(pair: Pair) -> None:
    here, there = pair
    reader = Incoming(here)
    there.sendall(frames.head(Kind.ALIVE, 0) + frame(3, Kind.WORK))
    assert reader.receive(Kind.WORK)[0].kind is Kind.WORK
    there.sendall(frame(11))
    with pytest.raises(Broken, match="with 11 bytes is none"):
        reader.receive(Kind.ROWS, limit=10)
    reader = Incoming(here)
    frames.send_json(there, Kind.REFUSED, {"reason": "no more"})
    with pytest.raises(Refused, match="no more"):
        Incoming(here).receive(Kind.WORK)
    there.sendall(frame(0, Kind.HELD))
    with pytest.raises(Broken, match="HELD came where WORK was due"):
        Incoming(here).receive(Kind.WORK)
    there.sendall(frame(100)[:50])
    there.close()
    with pytest.raises(Broken, match="closed the connection"):
        Incoming(here).receive(Kind.ROWS)
