"""A child process that reports as it goes: what it found so far is kept when it fails, hangs or is killed.

The child gets `--report FD` and writes a value of JSON a line there; its standard output is that of the parent. Where
it does not end well, the last lines of its standard error are part of what is kept. A child ends with its parent,
however that ends, and so do its own children.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

Keep = Callable[[Any], None]  # takes what was found so far, or one more thing

LAST_LINES = 15  # of standard error
TO_END = 5.0  # seconds for a process that was killed
SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl


def nobody(value: Any) -> None:
    """A `Keep` where nobody listens."""


def run(command: list[str], keep: Keep, seconds: float, silence: float | None = None) -> dict[str, Any]:
    """Hands `keep` every value that the child reports, within `seconds` and with at most `silence` seconds between two
    of them. What went wrong: {} or {"problem": one line, "stderr": [lines]}."""
    reading, writing = os.pipe()
    with tempfile.TemporaryFile("w+", errors="replace") as errors, os.fdopen(reading) as reports:
        process = subprocess.Popen([*command, "--report", str(writing)], pass_fds=[writing], stderr=errors)
        os.close(writing)
        try:
            problem = _listen(reports.fileno(), keep, seconds, silence) or _end(process)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(TO_END)
        errors.seek(0)
        lines = errors.read().splitlines()[-LAST_LINES:]
    if not problem:
        return {}
    print("\n".join(lines), file=sys.stderr, flush=True)
    said = lines[-1].strip() if lines and not problem.startswith("killed") else ""
    return {"problem": said or problem, "stderr": lines}


def _listen(reading: int, keep: Keep, seconds: float, silence: float | None) -> str:
    """Until the child closes its end; what ended it before, if something did."""
    start = last = time.monotonic()
    rest = b""
    while True:
        until = min(start + seconds, last + (silence or seconds))
        if not select.select([reading], [], [], max(0.0, until - time.monotonic()))[0]:
            now = time.monotonic()
            return f"killed after {now - start:.0f} s, {now - last:.0f} s after its last report"
        got = os.read(reading, 1 << 16)
        if not got:
            return ""
        *lines, rest = (rest + got).split(b"\n")
        for line in lines:
            last = time.monotonic()
            keep(json.loads(line))


def _end(process: subprocess.Popen[bytes]) -> str:
    """A child that reports no more is about to end; how it did, if not well."""
    try:
        status = process.wait(TO_END)
    except subprocess.TimeoutExpired:
        return "killed: it had reported all and did not end"
    return f"ended with status {status}" if status else ""


def reporter(fd: int | None) -> Keep:
    """In the child: what reports a value. Without a parent that listens it does nothing."""
    if fd is None:
        return nobody
    ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
    file = os.fdopen(fd, "w")

    def keep(value: Any) -> None:
        file.write(json.dumps(value) + "\n")
        file.flush()

    return keep
