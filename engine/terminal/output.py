"""Standard output and error as they are: closed, full, left by their reader, of any encoding, one place or two.

`settle` makes them ready before a command runs. From then on standard output raises `Lost` when it cannot be written,
and what is said on standard error is lost without an error: the run goes on. Characters that an encoding does not have
are replaced. `write` puts out text of a model; `end_line` comes before whatever is to have a line of its own.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any

from rich.style import Style

from ...errors import LONGEST, short, visible

BROKEN_PIPE = 141  # exit status, as shells show it of a program whose reader has gone
PREFIX = "headrace: "
DIM = Style(dim=True)
# Control characters of a text, which could steer a terminal: as pictures.
PICTURES = {c: 0x2400 + c for c in range(32) if chr(c) not in "\t\n"} | {127: 0x2421}
PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
_open: set[str] = set()  # "out", "err": streams whose last line has no end yet


class Lost(Exception):
    """Standard output cannot be written."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        reason = "it is closed" if error.errno == errno.EBADF else error.strerror
        self.message = f"standard output cannot be written: {reason}; send it to a file with room, or to /dev/null"
        self.status = BROKEN_PIPE if error.errno == errno.EPIPE else 1


class _Out(io.FileIO):
    """The bytes of standard output."""

    def write(self, data: Any) -> int:
        try:
            while (count := super().write(data)) is None:  # another program has made it non-blocking, and it is full
                select.select([], [self], [])
        except OSError as error:
            raise Lost(error) from error
        return count


class _Err(io.FileIO):
    """The bytes of standard error."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or len(data)
        except OSError:
            return len(data)


def settle() -> None:
    """Makes the three streams ready. Streams that a caller has put in the place of the process' own keep their way."""
    _open.clear()
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):  # of 1: so that writing fails
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115  # for as long as the process lives
    sys.stdout = _stream(1, _Out, sys.stdout, "replace")
    sys.stderr = _stream(2, _Err, sys.stderr, "backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")


def _stream(number: int, kind: type[io.FileIO], old: Any, errors: str) -> Any:
    """A stream that writes by `kind`, where `old` is the process' own; else `old` itself."""
    if old is not None and _number(old) != number:
        if isinstance(old, io.TextIOWrapper):
            old.reconfigure(errors=errors)
        return old
    raw = kind(number, "w", closefd=False)
    if old is not None:
        old.flush()
    lines = number == 2 or raw.isatty()
    encoding, through = getattr(old, "encoding", None), getattr(old, "write_through", False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=lines, write_through=through)


def _number(stream: Any) -> int | None:
    """The file descriptor of a stream, None of what has none."""
    try:
        return int(stream.fileno())
    except (OSError, AttributeError, ValueError):
        return None


def write(text: str, dim: bool = False) -> None:
    """Text of a model on standard output, at once: to a terminal without characters that steer it, elsewhere as it
    is. dim: less bright, on a terminal that can show that."""
    if not text:
        return
    shown = text.translate(PICTURES) if sys.stdout.isatty() else text
    is_dim = dim and sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    sys.stdout.write(DIM.render(shown) if is_dim else shown)
    sys.stdout.flush()
    begun("out", text)


def begun(stream: str, text: str) -> None:
    """Notes that "out" or "err" got this text, and may be in the midst of a line."""
    if stream == "out" and _is_one_place():
        _open.discard("err")
    (_open.discard if text.endswith("\n") else _open.add)(stream)


def end_line() -> None:
    """Ends the line that standard error, or text on the same terminal, is in the midst of."""
    if "err" in _open or ("out" in _open and _is_one_place()):
        print(file=sys.stderr)
        _open.clear()


def _is_one_place() -> bool:
    """Whether both streams end up in one terminal or one file."""
    out, err = _number(sys.stdout), _number(sys.stderr)
    try:
        return out is not None and err is not None and os.path.sameopenfile(out, err)
    except OSError:
        return False


def fail(message: str, status: int = 1) -> int:
    """Says what went wrong, on a line of its own that a person can read at once; returns the exit status."""
    end_line()
    print(f"{PREFIX}{short(visible(message), LONGEST - len(PREFIX))}", file=sys.stderr)
    return status


def lost(error: Lost) -> int:
    """Ends a run whose output is lost, quietly where its reader has left; returns the exit status."""
    handle = os.open(os.devnull, os.O_WRONLY)
    os.dup2(handle, 1)  # for what is still in buffers
    os.close(handle)
    return error.status if error.status == BROKEN_PIPE else fail(error.message, error.status)


def typed(text: str) -> str:
    """Text of the command line: bytes that the locale does not know are taken as UTF-8."""
    return os.fsencode(text).decode(errors="replace") if any("\udc80" <= c <= "\udcff" for c in text) else text


def finish(status: int) -> int:
    """Writes out what is buffered; returns the exit status."""
    try:
        sys.stdout.flush()
    except Lost as error:
        return lost(error)
    return status
