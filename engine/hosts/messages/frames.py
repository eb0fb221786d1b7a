"""Frames: what goes over a connection between a coordinator and a host of experts, each with a header of 16 bytes.

    magic "HRXH" | version u16 | kind u8 | wire u8 | call u32 | length u32 | length bytes        little endian

A length is held against the most that its kind may have before memory is taken for it. What is not a number is JSON:
nothing that comes over a connection is ever run, or made into an object by itself. A frame of another version is
refused with both versions named.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from ....errors import DeviceError

VERSION = 1
MAGIC = b"HRXH"
HEADER = struct.Struct("<4sHBBII")


class Kind(IntEnum):
    """What a frame is."""

    CHALLENGE = 1  # coordinator: its version, and a number that is used once
    HELLO = 2  # host: its name, its own number, and a proof that it has the token
    TERMS = 3  # coordinator: the same proof, and how the model is to be opened
    MODEL = 4  # host: the model's fingerprint, free memory, measured bandwidth
    SHARE = 5  # coordinator: which experts are the host's
    READY = 6  # host: they are loaded
    ALIVE = 7  # host: it is at work
    WORK = 8  # coordinator: rows, and which experts take them
    ROWS = 9  # host: what the experts gave
    REFUSED = 10  # either: why there will be nothing more
    PASS = 11  # coordinator: hidden states, and where their tokens stand in the cache
    HIDDEN = 12  # host: hidden states behind its layers
    HOLD = 13  # coordinator: which layers are the host's from now on
    HELD = 14  # host: they are loaded, or why not
    PING = 15  # coordinator: bytes that are to come back
    PONG = 16  # host: they are back
    FILES = 17  # host: it wants to read the model's files
    MANIFEST = 18  # coordinator: which there are
    FETCH = 19  # host: a part of one
    BYTES = 20  # coordinator: that part


LARGEST = (1 << 63) - 1  # of whole numbers in a message
SMALL = 64 << 10
MOST: dict[int, int] = dict.fromkeys(Kind, SMALL)  # bytes of a frame's body, by kind
MOST[Kind.SHARE] = MOST[Kind.MANIFEST] = 64 << 20
MOST[Kind.BYTES] = 8 << 20
LARGE = (Kind.WORK, Kind.ROWS, Kind.PASS, Kind.HIDDEN)  # whose most depends on what can be due
MOST |= dict.fromkeys(LARGE, 2 << 30)
MOST[Kind.PING] = MOST[Kind.PONG] = 4 << 20


class Header(NamedTuple):
    """Of a frame. wire: the code of the format of rows in it, 0 if it has none; call: what it answers, or belongs
    to."""

    kind: Kind
    wire: int
    call: int
    length: int


class Broken(DeviceError):
    """A connection ended, or what came over it is no frame."""


class Refused(Broken):
    """The other side said why there will be nothing more. again: it may be otherwise later."""

    def __init__(self, message: str = "", again: bool = False) -> None:
        super().__init__(message)
        self.again = again


def head(kind: Kind, length: int, wire: int = 0, call: int = 0) -> bytes:
    """The header of a frame of so many bytes."""
    assert length <= MOST[kind], f"{kind.name} of {length} bytes"
    return HEADER.pack(MAGIC, VERSION, kind, wire, call & 0xFFFFFFFF, length)


def read_head(data: bytes | bytearray | memoryview, limit: int | None = None) -> Header:
    """The header in 16 bytes; limit: bytes of rows that can be due. Raises Broken."""
    magic, version, kind, wire, call, length = HEADER.unpack(data)
    if magic != MAGIC:
        raise Broken("what came is no message of headrace: something else listens there; check the address")
    if version != VERSION:
        raise Broken(f"the other side speaks version {version} of the hosts' protocol, this headrace {VERSION}: "
                     "install the same headrace on all machines")  # fmt: skip
    most = MOST.get(kind, -1)
    if length > (min(most, limit) if limit is not None and kind in LARGE else most):
        raise Broken(f"a message of kind {kind} with {length} bytes is none: the connection is closed")
    return Header(Kind(kind), wire, call, length)


def send(sock: socket.socket, kind: Kind, body: bytes = b"") -> None:
    """Sends a frame. Raises OSError."""
    sock.sendall(head(kind, len(body)) + body)


def send_json(sock: socket.socket, kind: Kind, values: dict[str, Any]) -> None:
    """Sends an object."""
    send(sock, kind, json.dumps(values).encode())


def json_parts(kind: Kind, values: dict[str, Any], call: int) -> list[memoryview]:
    """The frame of an object, for whoever sends in parts."""
    body = json.dumps(values).encode()
    return [memoryview(head(kind, len(body), call=call) + body)]


def receive_into(sock: socket.socket, view: memoryview) -> None:
    """Fills a buffer. Raises Broken at the end of the connection, OSError."""
    done = 0
    while done < len(view):
        count = sock.recv_into(view[done:])
        if not count:
            raise Broken("the other side closed the connection")
        done += count


def receive(sock: socket.socket, *expected: Kind, limit: int | None = None) -> tuple[Header, bytearray]:
    """The next frame of one of these kinds; those that say only that the host is at work are passed over. Raises Broken
    for any other, and with its reason for a refusal."""
    while True:
        start = bytearray(HEADER.size)
        receive_into(sock, memoryview(start))
        header = read_head(start, limit)
        _check_kind(header, expected)
        body = bytearray(header.length)
        receive_into(sock, memoryview(body))
        if is_due(header, body, expected):
            return header, body


def is_due(header: Header, body: bytearray, expected: Sequence[Kind]) -> bool:
    """Whether a frame is one of these kinds; else it says only that the host is at work. Raises Broken for any other,
    and with its reason for a refusal."""
    _check_kind(header, expected)
    if header.kind is Kind.REFUSED:
        raise refusal(body)
    return header.kind in expected


def _check_kind(header: Header, expected: Sequence[Kind]) -> None:
    if header.kind not in (*expected, Kind.ALIVE, Kind.REFUSED):
        raise Broken(f"{header.kind.name} came where {expected[0].name} was due: the connection is closed")


def refusal(body: bytes | bytearray) -> Refused:
    """What a REFUSED frame says."""
    said = as_json(body)
    return Refused(str(said.get("reason", "the other side refused")), said.get("again") is True)


def as_json(body: bytes | bytearray) -> dict[str, Any]:
    """The object in a frame, all of whose numbers are finite and have 64 bits at most. Raises Broken."""
    try:
        found = json.loads(bytes(body).decode(), parse_int=_whole, parse_float=_finite, parse_constant=_finite)
    except _NoNumber as error:
        raise Broken(f"a message holds {error}, no number of 64 bits: the connection is closed") from error
    except (ValueError, RecursionError) as error:
        raise Broken("a message holds no JSON: the connection is closed") from error
    if not isinstance(found, dict):
        raise Broken("a message holds no JSON object: the connection is closed")
    return found


class _NoNumber(ValueError):
    pass


def _whole(text: str) -> int:
    """JSON has no bound for whole numbers."""
    found = int(text) if len(text) < 32 else LARGEST + 1
    if not -LARGEST <= found <= LARGEST:
        raise _NoNumber(text[:40])
    return found


def _finite(text: str) -> float:
    """Python's JSON knows infinity and NaN, and takes 1e999 for infinity."""
    found = float(text)
    if not math.isfinite(found):
        raise _NoNumber(text[:40])
    return found


def whole(said: Mapping[str, Any], name: str) -> int:
    """A count in an object, 0 where it has none. Raises Broken for what is none."""
    return count(said.get(name, 0), name)


def count(found: Any, name: str) -> int:
    """A value that was sent as a count of this name. Raises Broken for what is none."""
    if type(found) is not int or found < 0:
        raise Broken(f"{name} in a message is {str(found)[:40]!r}, no count: install the same headrace on all machines")
    return found


def no_share(error: Exception) -> Broken:
    """What to raise where a share has not what it should."""
    return Broken(f"the share is malformed ({error}): install the same headrace on all machines")


def tune(sock: socket.socket) -> None:
    """No waiting for more to send; large buffers, and word within a quarter of a minute of a machine that vanished."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    for size in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, size, 4 << 20)
