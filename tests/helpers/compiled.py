"""C++ programs of tests, compiled once for their content: what is in build/tests serves later runs too."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build" / "tests"
COMPILER = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")


class CompileError(Exception):
    """The compiler's words."""


@cache
def version() -> str:
    """The compiler's, which is part of what a program is made of."""
    return subprocess.run([str(COMPILER), "--version"], capture_output=True, text=True, check=True).stdout


def compiled(name: str, sources: Sequence[Path], flags: Sequence[str], headers: Sequence[Path] = ()) -> Path:
    """A program or library of these sources; `headers` are further files that decide on it. Its folder's name is a
    digest of all of them, so that it is compiled again when one changes. Raises CompileError."""
    made_of = hashlib.sha256("\0".join([version(), name, *flags]).encode())
    for path in (*sources, *headers):
        made_of.update(path.read_bytes())
    there = KEPT / made_of.hexdigest()[:16] / name
    if there.is_file():
        return there
    there.parent.mkdir(parents=True, exist_ok=True)
    mine = there.with_name(f"{name}.{os.getpid()}")  # another test run may be at it too
    command = [str(COMPILER), *flags, *map(str, sources), "-o", str(mine)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(done.stderr)
    mine.replace(there)
    return there
