"""A folder in which nothing can be written, whoever runs the tests: root is not held to permissions."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def lock(folder: Path, monkeypatch: pytest.MonkeyPatch, code: int = errno.EROFS) -> None:
    """From now on what would change something below the folder fails, as on a read-only file system."""

    def is_below(path: object) -> bool:
        return isinstance(path, str | os.PathLike) and Path(path).absolute().is_relative_to(folder)

    def refusing(call: Callable[..., Any], writes: Callable[..., bool]) -> Callable[..., Any]:
        def guarded(path: Any, *args: Any, **more: Any) -> Any:
            if is_below(path) and writes(*args, **more):
                raise OSError(code, os.strerror(code), str(path))
            return call(path, *args, **more)

        return guarded

    def by_mode(mode: str = "r", *_: object, **__: object) -> bool:
        return any(letter in mode for letter in "wax+")

    def by_flags(flags: int, *_: object, **__: object) -> bool:
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

    for module in (io, builtins):
        monkeypatch.setattr(module, "open", refusing(module.open, by_mode))
    monkeypatch.setattr(os, "open", refusing(os.open, by_flags))
    for name in ("mkdir", "unlink", "replace", "rename", "symlink", "truncate"):
        there = os.path.lexists if name == "mkdir" else None
        call = getattr(os, name)
        always = refusing(call, lambda *_, **__: True)
        # A folder that is there is said to be there, also where none can be made.
        monkeypatch.setattr(os, name, always if there is None else _unless(there, call, always))


def _unless(there: Callable[[Any], bool], call: Callable[..., Any], refused: Callable[..., Any]) -> Callable[..., Any]:
    return lambda path, *args, **more: (call if there(path) else refused)(path, *args, **more)
