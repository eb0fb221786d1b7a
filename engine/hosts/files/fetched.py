"""A host's side: a model whose weights are read over the connection, straight into their place.

A folder has what is no weight: configs, and of large files the headers, which are as long as the files and otherwise
empty. Whatever reads weights is given `read_into`, so that the host's disk holds none of them, and its RAM only those
that are its own. What comes is held against its hash.
"""

from __future__ import annotations

import hashlib
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

from torch import Tensor

from ....errors import OptionError
from ....loaders.files.entry import Entry
from ....loaders.files.held import HeldFile, HeldFiles
from ..joining import meeting
from ..messages import frames, greeting
from ..messages.frames import Broken, Kind, count
from .served import ASK, DIGEST, MOST

GREETING = 10.0  # seconds that a step of the greeting may take
SAME = "install the same headrace on all machines"
ANSWER = 60.0  # seconds that a part of a file may take


class FetchedModel:
    """The coordinator's model. `path` is what opens it. Raises Broken, OSError, OptionError."""

    def __init__(self, address: tuple[str, int], secret: bytes, name: str) -> None:
        self.address, self.secret, self.name = address, secret, name
        self.lock = threading.Lock()
        self.folder = tempfile.TemporaryDirectory(prefix="headrace-host-")
        self.place = Path(self.folder.name) / "model"
        self.place.mkdir()
        self.sock, said = self._connect()
        self.said = said
        if said.get("is_plain") is not True:
            raise OptionError(
                "the model is quantised in several tensors for each weight, which are not sent: give this host a copy "
                "(headrace host MODEL)"
            )
        files = _manifest(said)
        self.numbers = {name: number for number, (name, _, _) in enumerate(files)}
        for name, size, start in files:
            self._begin(name, size, start)

    @property
    def path(self) -> Path:
        """The folder, or a GGUF model's first file."""
        return self.place / self.said["model"] if self.said["model"] else self.place

    @property
    def fingerprint(self) -> str:
        """Of the coordinator's model."""
        return str(self.said["fingerprint"])

    def _connect(self) -> tuple[socket.socket, dict[str, Any]]:
        sock = meeting.join(*self.address)
        assert sock is not None, "a meeting that is waited for"
        try:
            sock.settimeout(GREETING)
            frames.tune(sock)
            greeting.answer(sock, self.secret, self.name)
            sock.settimeout(ANSWER)
            frames.send_json(sock, Kind.FILES, {})
            return sock, frames.as_json(frames.receive(sock, Kind.MANIFEST)[1])
        except BaseException:
            sock.close()
            raise

    def again(self) -> bool:
        """A new connection, to whoever is the coordinator now; whether the model is the same."""
        self.sock.close()
        self.sock, said = self._connect()
        return said == self.said

    def _begin(self, name: str, size: int, start: int) -> None:
        """A file that is empty behind its first bytes."""
        with (self.place / name).open("wb") as file:
            for at in range(0, start, MOST):
                file.write(self._fetch(self.numbers[name], at, min(MOST, start - at)))
            file.truncate(size)

    def _fetch(self, number: int, offset: int, size: int) -> memoryview:
        """Bytes of a file. Raises Broken where they are not what was sent."""
        with self.lock:
            frames.send(self.sock, Kind.FETCH, ASK.pack(number, offset, size))
            body = memoryview(frames.receive(self.sock, Kind.BYTES)[1])
        data = body[DIGEST:]
        if len(data) != size or hashlib.sha256(data).digest() != body[:DIGEST]:
            raise Broken(f"{size} bytes of a file did not come as they were sent: start the host again")
        return data

    def read(self, name: str, offset: int, into: Tensor) -> None:
        """Fills uint8 [bytes] from an offset of a file on."""
        number, view = self.numbers[name], into.numpy().data.cast("B")
        for at in range(0, len(view), MOST):
            size = min(MOST, len(view) - at)
            view[at : at + size] = self._fetch(number, offset + at, size)

    def read_into(self, entry: Entry, start: int, buffer: Tensor) -> None:
        """Fills a uint8 buffer with a tensor's bytes from `start` on, as `safetensors.read_into` does."""
        self.read(entry.path.name, entry.offset + start, buffer)

    def close(self) -> None:
        self.sock.close()
        self.folder.cleanup()


def _manifest(said: dict[str, Any]) -> list[tuple[str, int, int]]:
    """The name, the size and the bytes without weights of each file. Raises Broken for what is no manifest, or names a
    file in another folder."""
    try:
        files = [(name, count(size, "a size"), count(start, "a start")) for name, size, start in said["files"]]
        names = [said["model"] or "model", *(name for name, _, _ in files)]
        is_good = isinstance(said["fingerprint"], str) and all(start <= size for _, size, start in files)
        is_good = is_good and all(isinstance(name, str) and _is_plain(name) for name in names)
    except (KeyError, TypeError, ValueError) as error:
        raise Broken(f"the list of the model's files is malformed ({error}): {SAME}") from error
    if not is_good:
        raise Broken(f"the list of the model's files is malformed: {SAME}")
    return files


def _is_plain(name: str) -> bool:
    """Whether it names a file in the folder that it is put into."""
    return name == Path(name).name and name != ".." and name.isprintable()


class FetchedFile(HeldFile):
    """One file, of which only the beginning is here."""

    model: FetchedModel

    def read_into(self, offset: int, into: Tensor) -> None:
        """Fills uint8 [bytes] from an offset of the file on."""
        self.model.read(self.path.name, offset, into)


class FetchedFiles(HeldFiles):
    """The files of such a model."""

    def __init__(self, model: FetchedModel) -> None:
        super().__init__()
        self.model = model

    def hold(self, path: Path) -> HeldFile:
        """The file, opened if it is not yet."""
        if path not in self.files:
            found = FetchedFile(path, self.bounce)
            found.model = self.model
            self.files[path] = found
        return self.files[path]
