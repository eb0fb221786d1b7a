"""Ctrl-C while modules are imported ends a command at once, with one line.

Imports take seconds, and there is nothing of them to finish. An exception would not do: C code that imports in its own
turn, as torch does with numpy, takes any for a module that is not there, and goes on without it. Imports nothing of
ours, so that it can be there before all else.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

INTERRUPTED = 130  # exit status, as shells show it
IMPORTS = "<frozen importlib"  # how the names of the files begin that have the code of imports
SHOW_CURSOR = b"\x1b[?25h"  # a bar hides it


def during_imports() -> None:
    """From now on Ctrl-C ends an import; elsewhere it raises KeyboardInterrupt as before. A process that is deaf to
    Ctrl-C stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)


def as_ever() -> None:
    """Ctrl-C raises KeyboardInterrupt, wherever it comes: event loops have ways of their own for that one alone."""
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupted(_: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith(IMPORTS):
            os.write(2, (SHOW_CURSOR + b"\n" if os.isatty(2) else b"") + b"headrace: interrupted\n")
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt
