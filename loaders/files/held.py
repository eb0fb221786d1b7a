"""Files that are held open while a model runs, and read past the page cache.

A file that is held stays readable when its name is removed or given to another file, whose bytes are never mixed in;
one that is changed in place is refused. Direct reads (O_DIRECT) leave no copy in the page cache, which would take the
RAM that a limit forbids. They want whole blocks at both ends: what begins and ends otherwise, in the file or in memory,
goes through a buffer of each thread. Where the file system refuses direct reads they are plain, and the system is told
after each to forget what it kept.
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
from pathlib import Path

import torch
from torch import Tensor

from ...errors import CheckpointError
from .. import regular
from .entry import Entry

BLOCK = 4096  # what offsets and lengths of direct reads are multiples of
PIECE = 1 << 20  # most bytes of one read
TRIES = 2
RESTART = "put the file back as it was, and start again"
log = logging.getLogger("headrace")


def pread(fd: int, into: memoryview, offset: int) -> int:
    """Reads into a buffer from an offset on; how many bytes came."""
    return os.preadv(fd, [into], offset)


def _open(path: Path | str, flags: int) -> int:
    return regular.descriptor(path, flags)


class Bounce(threading.local):
    """A buffer of each thread, on a page, with a block to spare at both ends."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, PIECE + 2 * BLOCK)
        self.view = memoryview(self.memory)
        self.tensor = torch.frombuffer(self.memory, dtype=torch.uint8)


class HeldFile:
    """One file. is_direct: whether reads go past the page cache; refused: why not."""

    def __init__(self, path: Path, bounce: Bounce) -> None:
        self.path, self.bounce, self.refused = path, bounce, ""
        try:
            self.plain = _open(path, 0)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
        self.seen = self._now()
        self.fd = self._direct()

    @property
    def is_direct(self) -> bool:
        return self.fd != self.plain

    def _direct(self) -> int:
        """A descriptor of the same file for direct reads, or the plain one where they are refused."""
        try:
            fd = _open(f"/proc/self/fd/{self.plain}", os.O_DIRECT)
        except OSError as error:
            self.refused = str(error.strerror)
            return self.plain
        try:
            pread(fd, self.bounce.view[:BLOCK], 0)
        except OSError as error:
            os.close(fd)
            self.refused = str(error.strerror)
            return self.plain
        return fd

    def _now(self) -> tuple[int, int]:
        """What a change in place changes: size and time of the last write."""
        found = os.fstat(self.plain)
        return found.st_size, found.st_mtime_ns

    def check(self) -> None:
        """Raises CheckpointError if the file was written to since it was opened."""
        size, _ = now = self._now()
        if now != self.seen:
            what = f"has {size} bytes and had {self.seen[0]}" if size != self.seen[0] else "was written to"
            raise CheckpointError(f"{self.path} {what} since the model was loaded: {RESTART}")

    def check_name(self) -> None:
        """Raises CheckpointError if the path is another file's by now."""
        try:
            there = os.stat(self.path)
        except OSError as error:
            raise CheckpointError(f"{self.path} was removed while it was used ({error.strerror}): {RESTART}") from error
        if not os.path.samestat(there, os.fstat(self.plain)):
            raise CheckpointError(f"{self.path} was replaced by another file while it was used: {RESTART}")

    def read_into(self, offset: int, into: Tensor) -> None:
        """Fills uint8 [bytes] from an offset of the file on. Raises CheckpointError where it cannot be read, was
        changed, or is too short."""
        for start in range(0, len(into), PIECE):
            part = into[start : start + PIECE]
            if self._is_whole(offset + start, part):
                self._read(offset + start, len(part), part.numpy().data)
                self.check()
                continue
            skip = self._read(offset + start, len(part), self.bounce.view)
            self.check()  # after the read: what came before a change is right
            part.copy_(self.bounce.tensor[skip : skip + len(part)])

    def _is_whole(self, offset: int, into: Tensor) -> bool:
        """Whether a direct read can fill it without a buffer between, or a plain one."""
        return not self.is_direct or not (offset % BLOCK or len(into) % BLOCK or into.data_ptr() % BLOCK)

    def _read(self, offset: int, count: int, into: memoryview) -> int:
        """Reads `count` bytes into a buffer; where in it they begin."""
        skip = offset % BLOCK if self.is_direct else 0
        begin, need, done = offset - skip, skip + count, 0
        span = -(-need // BLOCK) * BLOCK if self.is_direct else need
        while done < need:
            before = done
            done += self._try(into[done:span], begin + done)
            if done < need and self.is_direct:
                done -= done % BLOCK  # interrupted: goes on with a whole block
            if done <= before:
                self.check()
                raise CheckpointError(
                    f"{self.path}: {count} bytes from {offset} on were asked for, the read ended at {begin + done}; "
                    "the file or its disk is damaged: copy or download it again"
                )
        if not self.is_direct:
            os.posix_fadvise(self.fd, begin, span, os.POSIX_FADV_DONTNEED)
        return skip

    def _try(self, into: memoryview, offset: int) -> int:
        """One read, and after an error a second one."""
        for left in reversed(range(TRIES)):
            try:
                return pread(self.fd, into, offset)
            except OSError as error:
                if not left:
                    raise CheckpointError(
                        f"cannot read {self.path} at byte {offset}: {error.strerror}; look at the disk (dmesg, "
                        "smartctl), or copy the model to another one"
                    ) from error
                log.warning("%s at byte %d: %s; it is read again", self.path, offset, error.strerror)
        raise AssertionError("no try")

    def forget_pages(self) -> None:
        """Tells the system to forget what it keeps of the file."""
        os.posix_fadvise(self.plain, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        for fd in {self.plain, self.fd}:
            os.close(fd)


class HeldFiles:
    """Files by path, opened when the first tensor in them is asked for."""

    def __init__(self) -> None:
        self.bounce = Bounce()
        self.files: dict[Path, HeldFile] = {}

    def hold(self, path: Path) -> HeldFile:
        """The file, opened if it is not yet."""
        if path not in self.files:
            self.files[path] = HeldFile(path, self.bounce)
        return self.files[path]

    def read_into(self, entry: Entry, start: int, buffer: Tensor) -> None:
        """Fills a uint8 buffer with a tensor's bytes from `start` on, as `safetensors.read_into` does."""
        self.files[entry.path].read_into(entry.offset + start, buffer)

    @property
    def refused(self) -> str:
        """Why direct reads are not possible; "" where they are."""
        return next((one.refused for one in self.files.values() if one.refused), "")

    @property
    def identity(self) -> tuple[tuple[str, int, int], ...]:
        """Of each file name, size and time of the last write."""
        return tuple(sorted((path.name, *one.seen) for path, one in self.files.items()))

    def close(self) -> None:
        for one in self.files.values():
            one.close()
        self.files = {}
