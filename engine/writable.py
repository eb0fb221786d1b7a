"""Whether a file can be written, asked before the work whose result it is to hold."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from pathlib import Path

from ..errors import OptionError

FULL = (errno.ENOSPC, errno.EDQUOT)
PROBE = 4096  # bytes that must have room
NO_ANSWER = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)  # of a file system that cannot reserve room


def check(path: Path, what: str) -> None:
    """Raises OptionError if `what` cannot be written to a file. What the file holds stays."""
    error = problem(path)
    if error is not None:
        raise refusal(path, what, error) from error


def problem(path: Path, with_folders: bool = False) -> OSError | None:
    """Why a file cannot be written, if that is so; with_folders: those above it may be made."""
    try:
        if with_folders:
            path.parent.mkdir(parents=True, exist_ok=True)
        was_there = path.exists()
        if was_there and stat.S_ISFIFO(path.stat().st_mode):
            return None  # opening one waits for its reader
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _take_room(handle)
        finally:
            os.close(handle)
            if not was_there:
                path.unlink()
    except OSError as error:
        return error
    return None


def keep(path: Path, text: str) -> OSError | None:
    """Writes a file that later starts are to find, and the folders above it; why it could not be, if that is so. Who
    reads it meanwhile, or after this process was killed, finds the old one or the new one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _replace(path.resolve(), f"{text}\n"):
            path.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        return error
    return None


def _replace(path: Path, text: str) -> bool:
    """Puts a new file in the place of one; False where that cannot be: it is a device, or only it may be written."""
    if path.exists() and not path.is_file():
        return False
    beside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        return False
    return True


def refusal(path: Path | str, what: str, error: OSError) -> OptionError:
    """What is said when `what` cannot be written."""
    remedy = "make room, or choose another path" if error.errno in FULL else "choose another path"
    return OptionError(f"cannot write {what} to {path}: {error.strerror}; {remedy}")


def _take_room(handle: int) -> None:
    """Takes a little room behind what a file holds and gives it back; a device gets an empty line."""
    status = os.fstat(handle)
    if stat.S_ISCHR(status.st_mode) and not os.isatty(handle):
        os.write(handle, b"\n")
    if not stat.S_ISREG(status.st_mode) or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(handle, status.st_size, PROBE)
    except OSError as error:
        if error.errno not in NO_ANSWER:
            raise
    finally:
        os.ftruncate(handle, status.st_size)
