"""Traces that are kept for later, one for each model, in the user's cache: by them `--policy auto` chooses at a start.

A file is named by the model's hash (`recorder.digest`), which says its shape and its routers: a model in other formats
has the same one, since choices do not depend on them. A trace of an older headrace, or of other weights under the same
name, has another, and is never taken for this model's. All together take at most MOST_BYTES: the oldest go first.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ...errors import OptionError
from ..bandwidth_model.profile import ELSEWHERE, cache_folder
from . import reader
from .layout import Header

MOST_BYTES = 1_000_000_000
DIGITS = 16  # of the hash, in a file's name


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A file of the folder. header, tokens: None where it is no whole trace; recorded: seconds since 1970; problem: why
    it is of no use, and what to do; "": it is."""

    path: Path
    header: Header | None
    tokens: int | None
    nbytes: int
    recorded: float
    problem: str


def folder() -> Path:
    """Where they are."""
    return cache_folder() / "traces"


def stored_trace(digest: str) -> Path | None:
    """The trace that is kept for a model, by its hash; None: there is none, or it is damaged."""
    path = _path(digest)
    if not digest or not path.is_file():
        return None
    found = _look(path)
    return path if found.header is not None and found.header.digest == digest and not found.problem else None


def of_name(name: str) -> Path | None:
    """The newest trace that is kept for a model of this name, whatever its weights; None: there is none."""
    return next(
        (one.path for one in kept() if one.header is not None and one.header.model == name and not one.problem), None
    )


def advice(digest: str, name: str) -> str:
    """What to do where `stored_trace` finds none for a model; name: what people call it."""
    record = "headrace trace record MODEL --prompts FILE"
    others = [one for one in kept() if one.header is not None and one.header.model == name]
    if any(one.header is not None and one.header.digest == digest for one in others):
        return f"the trace that is kept for {name} is damaged: {record}"
    if others:
        return f"the trace that is kept for {name} is of other weights, or of another headrace: {record}"
    return f"no trace is kept for {name}: {record}"


def new_file() -> Path:
    """Where a trace can be recorded that is to be kept; `keep` takes it from there. Raises OptionError."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = f"{ELSEWHERE}, or name a file with -o"
        raise OptionError(f"cannot keep a trace in {folder()}: {error.strerror}; {remedy}") from error
    found = folder() / f"unfinished-{os.getpid()}.trace"
    found.unlink(missing_ok=True)  # of a process that was killed, and had the same number
    return found


def keep(file: Path, *, move: bool) -> Path:
    """Takes a whole trace as that of its model, instead of one that was kept before, and drops the oldest of other
    models where all take more than MOST_BYTES. move: the file is not needed any more. Raises OptionError."""
    header, tokens = reader.glance(file)
    if not header.digest or tokens is None:
        what = "has no end" if header.digest else "was made up"
        raise OptionError(f"{file} cannot be kept for a model: it {what}; record one")
    to = _path(header.digest)
    try:
        folder().mkdir(parents=True, exist_ok=True)
        ready = file if move else Path(shutil.copyfile(file, new_file()))
        os.replace(ready, to)
        _make_room(to)
    except OSError as error:
        raise OptionError(f"cannot keep the trace {file} as {to}: {error.strerror}; {ELSEWHERE}") from error
    return to


def kept() -> list[Kept]:
    """All files, the newest first."""
    found = [_look(path) for path in folder().glob("*.trace") if path.is_file()]
    return sorted(found, key=lambda one: (-one.recorded, one.path.name))


def _path(digest: str) -> Path:
    return folder() / f"{digest[:DIGITS]}.trace"


def _look(path: Path) -> Kept:
    status = path.stat()
    try:
        header, tokens = reader.glance(path)
        problem = "it has no end: delete it, or wait for who writes it" if tokens is None else ""
        if not problem and path != _path(header.digest):
            problem = "its name is not its model's hash: delete it"
    except OptionError as error:
        header, tokens, problem = None, None, f"{error}: delete it"
    return Kept(
        path=path, header=header, tokens=tokens, nbytes=status.st_size, recorded=status.st_mtime, problem=problem
    )


def _make_room(newest: Path) -> None:
    """Drops the oldest of the others."""
    there = kept()
    total = sum(one.nbytes for one in there)
    for one in reversed(there):
        if total > MOST_BYTES and one.path != newest:
            one.path.unlink(missing_ok=True)
            total -= one.nbytes
