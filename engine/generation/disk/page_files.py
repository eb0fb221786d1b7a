"""A folder of files that hold pages of a KV cache, and recurrent states, each under the digest of its prefix.

    DIR/FINGERPRINT/DIGEST.page     for one model, its formats and kernels; .window1 of layers over its first window

The first half of a fingerprint says the model, the second the program that computes. What another program has computed
of the model is removed: it would never be read again, and take room from what is.

A file is written beside its place and renamed, and has a checksum; one that is damaged, or is none of ours, counts as
not there and is removed. The folder has a limit of bytes: what was used longest ago goes, whichever model it is of; of
a prompt the end goes before the beginning. Knows bytes, no tensors.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import struct
import threading
import time
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...units import size as as_size

log = logging.getLogger("headrace")
HEADER = struct.Struct("<16s16s16sQI4x")  # magic, fingerprint, digest, bytes that follow, their checksum
MAGIC = b"headrace-kv-1\r\n\0"
FOLDER = re.compile(r"[0-9a-f]{32}")
FILE = re.compile(r"[0-9a-f]{32}\.(page|state|window\d+)")
MODEL_DIGITS = 16  # of a fingerprint's 32
LEFT_OVER_S = 3600  # a file that is being written is not older
KEPT_SHARE = 0.95  # of the limit, when room is made
PAGE_KIND, STATE_KIND, WINDOW_KIND = "page", "state", "window"  # of windows with a number behind it
Parts = Sequence[memoryview]


class PageFiles:
    """Of one model, in a folder that others may share. limit: bytes of the whole folder. Any thread may call.

    Raises OSError where the folder cannot be made or read."""

    def __init__(self, folder: Path, fingerprint: bytes, limit: int) -> None:
        self.folder, self.fingerprint, self.limit = folder, fingerprint, limit
        self.own = folder / fingerprint.hex()
        folder.mkdir(parents=True, exist_ok=True)
        self.own.mkdir(mode=0o700, exist_ok=True)  # what was said can be worked out of keys and values
        self._start = f"{self.own}{os.sep}"
        self.bytes = 0
        self._found: dict[str, tuple[int, int]] = {}  # by path when it was used, and its bytes
        self._lock = threading.Lock()
        for place in sorted(one for one in folder.iterdir() if one.is_dir() and FOLDER.fullmatch(one.name)):
            self._scan(place)
        self._remove_outdated()

    def _scan(self, place: Path) -> None:
        for entry in os.scandir(place):
            with contextlib.suppress(FileNotFoundError):  # another process has removed it
                status = entry.stat()
                if FILE.fullmatch(entry.name):
                    self._found[entry.path] = status.st_mtime_ns, status.st_size
                    self.bytes += status.st_size
                elif entry.name.endswith(".tmp") and time.time() - status.st_mtime > LEFT_OVER_S:
                    os.unlink(entry.path)

    def _remove_outdated(self) -> None:
        """Empties folders of this model by another program. They stay themselves: it may still be running."""
        own, before = self.own.name, self.bytes
        places = [Path(path) for path in self._found]
        others = [p for p in places if p.parent.name[:MODEL_DIGITS] == own[:MODEL_DIGITS] and p.parent.name != own]
        for path in others:
            self._remove(str(path))
        if others:
            log.warning(
                "%s: %d files (%s) of this model were computed by another version of headrace, its kernels or torch; "
                "they are removed, and what they stood for computed again",
                self.folder, len(others), as_size(before - self.bytes),
            )  # fmt: skip

    def path(self, digest: bytes, kind: str = PAGE_KIND) -> str:
        """Where it is, or would be."""
        return f"{self._start}{digest.hex()}.{kind}"

    def has(self, digest: bytes, kind: str = PAGE_KIND) -> bool:
        """Whether there is a file; it may turn out to be damaged."""
        return self.path(digest, kind) in self._found

    def read(self, digest: bytes, kind: str, parts: Parts) -> bool:
        """Fills parts with what a file holds. False where it is not there, or not whole: then it is removed."""
        path = self.path(digest, kind)
        try:
            problem = self._read(path, digest, parts)
        except FileNotFoundError:  # another process has removed it
            self._forget(path)
            return False
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        if problem is not None:
            log.warning("%s %s; it is removed, and what it stood for computed again", path, problem)
            self._remove(path)
        return problem is None

    def _read(self, path: str, digest: bytes, parts: Parts) -> str | None:
        """What is wrong with a file, if something is."""
        size = sum(part.nbytes for part in parts)
        with open(path, "rb", buffering=0) as file:
            head = file.read(HEADER.size)
            if len(head) < HEADER.size or not head.startswith(MAGIC):
                return "is no page of a KV cache"
            magic, fingerprint, named, stored, checksum = HEADER.unpack(head)
            if (magic, fingerprint, named, stored) != (_magic(), self.fingerprint, digest, size):
                return "is a page of another prompt or model"
            for part in parts:
                at = 0
                while at < part.nbytes and (count := file.readinto(part[at:])):
                    at += count
                if at < part.nbytes:
                    return "is cut off"
            return None if _checksum(parts) == checksum else "is damaged"

    def write(self, digest: bytes, kind: str, parts: Parts, before: bytes | None) -> None:
        """Keeps parts under a digest. before: the digest of the page before, of which this one is the use's end. Raises
        OSError; nothing of the file is left then."""
        path, size = self.path(digest, kind), HEADER.size + sum(part.nbytes for part in parts)
        if size > self.limit:
            return
        self._make_room(size)
        beside = f"{path}.{os.getpid()}.tmp"
        head = HEADER.pack(_magic(), self.fingerprint, digest, size - HEADER.size, _checksum(parts))
        try:
            with open(beside, "wb", buffering=0) as file:
                for part in (memoryview(head), *parts):
                    at = 0
                    while at < part.nbytes:
                        at += file.write(part[at:])
            os.replace(beside, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise
        used = time.time_ns()
        if before is not None and (older := self._found.get(self.path(before))):
            used = older[0] - 1
        with self._lock:
            self.bytes += size - self._found.get(path, (0, 0))[1]
            self._found[path] = used, size
        _stamp(path, used)

    def use(self, digests: Iterable[bytes], kind: str = PAGE_KIND) -> None:
        """Says that pages of a prompt, in their order, are in use."""
        now = time.time_ns()
        for place, digest in enumerate(digests):
            path = self.path(digest, kind)
            with self._lock:
                if path in self._found:
                    self._found[path] = now - place, self._found[path][1]

    def stamp(self) -> None:
        """Lets files say when they were used, for later runs."""
        with self._lock:
            found = [(path, used) for path, (used, _) in self._found.items() if path.startswith(self._start)]
        for path, used in found:
            _stamp(path, used)

    def _make_room(self, size: int) -> None:
        if self.bytes + size <= self.limit:
            return
        with self._lock:
            oldest = sorted(self._found, key=lambda path: self._found[path][0])
        for path in oldest:
            if self.bytes + size <= KEPT_SHARE * self.limit:
                break
            self._remove(path)

    def _remove(self, path: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(path)
        self._forget(path)

    def _forget(self, path: str) -> None:
        with self._lock:
            self.bytes -= self._found.pop(path, (0, 0))[1]


def _magic() -> bytes:
    return MAGIC.ljust(16, b"\0")


def _checksum(parts: Parts) -> int:
    found = 0
    for part in parts:
        found = zlib.crc32(part, found)
    return found


def _stamp(path: str, used: int) -> None:
    with contextlib.suppress(OSError):
        os.utime(path, ns=(used, used))
