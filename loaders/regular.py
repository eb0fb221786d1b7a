"""Files of strangers, opened only as what they should be: regular files, of a size that makes sense.

A pipe under the name of a model's file would be waited for for ever, a device never ends, and a config of gigabytes is
none. What is refused is an OSError with a reason, so that whoever reads says it as any other error of reading.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

MOST_TEXT = 64 << 20  # bytes; the longest tokenizer.json has half of it
PART = 1 << 20  # bytes read at once: memory is taken for as many, also where a file has few


def descriptor(path: Path | str, flags: int = 0) -> int:
    """A descriptor for reading. Raises OSError for what is no regular file."""
    # Without waiting: the opening of a pipe ends only when somebody writes to it.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return fd


def opened(path: Path) -> BinaryIO:
    """The same as a file object."""
    return os.fdopen(descriptor(path), "rb")


def check(path: Path, most: int = MOST_TEXT) -> None:
    """For a file that a library reads. Raises OSError as `text` does."""
    fd = descriptor(path)
    try:
        size = os.fstat(fd).st_size
    finally:
        os.close(fd)
    if size > most:
        raise _too_large(path, most)


def text(path: Path, encoding: str = "utf-8", most: int = MOST_TEXT) -> str:
    """What a small file says, with line breaks as `read_text` gives them. Raises OSError also for more than `most`
    bytes, UnicodeDecodeError for what is no text."""
    data = bytearray()
    with opened(path) as file:
        while len(data) <= most and (part := file.read(min(PART, most + 1 - len(data)))):
            data += part
    if len(data) > most:
        raise _too_large(path, most)
    return io.TextIOWrapper(io.BytesIO(data), encoding).read()


def _too_large(path: Path, most: int) -> OSError:
    return OSError(errno.EFBIG, f"it has more than {most >> 20} MB", str(path))
