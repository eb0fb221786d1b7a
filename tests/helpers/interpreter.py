"""Triton's interpreter, looked into once: for every program of a launch it lists all members of its modules anew, which
takes it a quarter of its time."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

from triton import language as tl
from triton.runtime import interpreter


@cache
def _names(package: Any) -> list[str]:
    """What the interpreter puts its own functions in place of."""
    return [name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]


def _members(package: Any) -> list[tuple[str, Any]]:
    return [(name, getattr(package, name)) for name in _names(package)]


def hasten() -> None:
    interpreter.inspect = SimpleNamespace(**{**vars(inspect), "getmembers": _members})


@contextmanager
def whole_model() -> Iterator[None]:
    """Without looking for overflow in every sum of integers, a quarter of the time: cases of single kernels look."""
    builder = interpreter.interpreter_builder
    before = builder.options
    builder.options = replace(before, sanitize_overflow=False)
    try:
        yield
    finally:
        builder.options = before
