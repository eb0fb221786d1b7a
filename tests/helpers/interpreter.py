"""Triton's interpreter without what it works out anew for every launch and every value: the functions that it puts in
place of others, and the shapes and types of blocks. They take it half of its time."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

from triton import language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter


@cache
def _names(package: Any) -> list[str]:
    """What the interpreter puts its own functions in place of."""
    return [name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]


def _members(package: Any) -> list[tuple[str, Any]]:
    return [(name, getattr(package, name)) for name in _names(package)]


class _Patches:
    """What the interpreter puts in place of the language's functions while kernels run: made at the first launch and
    kept. Functions that kernels call find it there already."""

    def __init__(self) -> None:
        self.patch = interpreter._patch_lang
        self.kept: dict[frozenset[int], list[tuple[Any, str, Any, Any]]] = {}
        self.there: set[frozenset[int]] = set()

    def __call__(self, fn: Any) -> Any:
        modules = frozenset(id(m) for m in fn.__globals__.values() if m is tl or m is tl.core)
        if modules in self.there:
            return SimpleNamespace(restore=lambda: None)
        if modules in self.kept:
            for at, name, _, after in self.kept[modules]:
                setattr(at, name, after)
        else:
            changes = self.patch(fn)._changes
            self.kept[modules] = [(at, name, before, getattr(at, name)) for at, name, before in changes]
        self.there.add(modules)
        return SimpleNamespace(restore=lambda: self._restore(modules))

    def _restore(self, modules: frozenset[int]) -> None:
        self.there.remove(modules)
        for at, name, before, _ in reversed(self.kept[modules]):
            if before is interpreter._MISSING:
                delattr(at, name)
            else:
                setattr(at, name, before)


def _kept_shapes() -> None:
    """Blocks of one shape share what follows from it."""
    plain = tl.core.block_type.__init__
    shapes: dict[tuple[object, ...], tuple[Any, int, str]] = {}
    of_tensors: dict[int, tuple[Any, Any, Any]] = {}

    def block(self: Any, element_ty: Any, shape: Any) -> None:
        key = tuple(n.value if type(n) is tl.core.constexpr else n for n in shape)
        if key in shapes:
            self.element_ty = element_ty
            self.shape, self.numel, text = shapes[key]
            self.name = f"<{text}, {element_ty}>"
        else:
            plain(self, element_ty, shape)
            shapes[key] = self.shape, self.numel, str(self.shape)

    def tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        shape = type.shape if type.is_block() else ()
        if id(shape) not in of_tensors:
            lengths = tl.core.tuple([tl.core.constexpr(n) for n in shape])
            of_tensors[id(shape)] = shape, lengths, tl.core.constexpr(math.prod(shape))
        _, self.shape, self.numel = of_tensors[id(shape)]

    tl.core.block_type.__init__ = block
    tl.core.tensor.__init__ = tensor


def _equal_shapes() -> None:
    """Values of one shape need no broadcast; shapes are shared, so that a look tells."""
    plain = TritonSemantic.broadcast_impl_value

    def broadcast(self: Any, lhs: Any, rhs: Any) -> tuple[Any, Any]:
        left, right = (t.shape if t.is_block() else None for t in (lhs.type, rhs.type))
        return (lhs, rhs) if left is right else plain(self, lhs, rhs)

    TritonSemantic.broadcast_impl_value = broadcast


def _kept_dtypes() -> None:
    """numpy's type of one of Triton's, from a table that is made once."""
    plain = interpreter._get_np_dtype
    of_scalar = cache(plain)

    def dtype(of: Any) -> Any:
        of = of.element_ty if isinstance(of, tl.block_type) else of
        return plain(of) if isinstance(of, tl.pointer_type) else of_scalar(of)

    interpreter._get_np_dtype = dtype


def hasten() -> None:
    interpreter.inspect = SimpleNamespace(**{**vars(inspect), "getmembers": _members})
    interpreter._patch_lang = _Patches()
    _kept_shapes()
    _equal_shapes()
    _kept_dtypes()


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
