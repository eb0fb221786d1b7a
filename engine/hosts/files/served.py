"""The coordinator's side: it says which files the model is made of, and sends parts of them to hosts that ask.

    host -> coordinator   FILES
    coordinator -> host   MANIFEST   of each file its name, size, and how many of its first bytes are no weights
    host -> coordinator   FETCH      number of a file u32 | offset u64 | bytes u32
    coordinator -> host   BYTES      SHA-256 of the bytes | the bytes

A connection of its own does this, so that rows and hidden states wait for no file. Only files of the manifest are sent.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from pathlib import Path
from typing import NamedTuple

from ....loaders import regular
from ....loaders.weights.checkpoint import Checkpoint
from ..messages import frames
from ..messages.frames import Broken, Kind

ASK = struct.Struct("<IQI")
DIGEST = 32  # bytes of a SHA-256
MOST = 4 << 20  # bytes of one answer
NO_WEIGHTS = "tokenizer"  # files whose names begin so are of no use to a host


class ServedFile(NamedTuple):
    """start: bytes from the first on that hold no weights: all of a small file, the header of a large one."""

    path: Path
    name: str
    size: int
    start: int


class ServedFiles:
    """Of one model. Raises CheckpointError, OSError where they cannot be read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        place = checkpoint.directory
        self.model = place.name if place.is_file() else ""
        starts: dict[Path, int] = {}
        for entry in checkpoint.entries.values():
            starts[entry.path] = min(entry.offset, starts.get(entry.path, entry.offset))
        others = [] if place.is_file() else sorted(place.iterdir())
        for path in others:
            if path.suffix == ".safetensors":
                starts[path] = _header(path)
            elif path.suffix == ".json" and not path.name.startswith(NO_WEIGHTS):
                starts[path] = path.stat().st_size
        self.files = [ServedFile(path, path.name, path.stat().st_size, at) for path, at in sorted(starts.items())]
        self.is_plain = not any(entry.packed for entry in checkpoint.entries.values())

    def serve(self, sock: socket.socket, fingerprint: str) -> None:
        """Until the host has closed the connection. Raises Broken, OSError."""
        files = [[file.name, file.size, file.start] for file in self.files]
        said = {"model": self.model, "files": files, "fingerprint": fingerprint, "is_plain": self.is_plain}
        frames.send_json(sock, Kind.MANIFEST, said)
        sock.settimeout(None)
        opened: dict[int, int] = {}
        try:
            while True:
                _, body = frames.receive(sock, Kind.FETCH)
                self._send(sock, bytes(body), opened)
        finally:
            for fd in opened.values():
                os.close(fd)

    def _send(self, sock: socket.socket, asked: bytes, opened: dict[int, int]) -> None:
        if len(asked) != ASK.size:
            raise Broken("a request for a file is damaged: the connection is closed")
        number, offset, size = ASK.unpack(asked)
        if number >= len(self.files) or size > MOST or offset + size > self.files[number].size:
            raise Broken("a file is asked for that the model does not have: the connection is closed")
        if number not in opened:
            opened[number] = regular.descriptor(self.files[number].path)
        data = os.pread(opened[number], size, offset)
        frames.send(sock, Kind.BYTES, hashlib.sha256(data).digest() + data)


def _header(path: Path) -> int:
    """Bytes of a safetensors file before its tensors."""
    with regular.opened(path) as file:
        return 8 + int.from_bytes(file.read(8), "little")
