"""Stands for torch where a module of kernels is imported for its kernels alone: the target's Python has Triton here and
no torch, whose wheel for it would bring gigabytes of CUDA."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class Name:
    """Anything of torch's: a type that shows as torch shows it, called or subscripted without effect."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"torch.{self.name}"

    def __getattr__(self, name: str) -> Name:
        if name.startswith("__"):
            raise AttributeError(name)
        return Name(f"{self.name}.{name}")

    def __call__(self, *_: Any, **__: Any) -> Name:
        return self

    def __getitem__(self, _: Any) -> Name:
        return self

    def __or__(self, _: Any) -> Name:
        return self

    __ror__ = __or__


class NoTorch(ModuleType):
    """The module; every name is there, and the same one each time."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = type(name, (), {}) if name == "Tensor" else Name(name)
        setattr(self, name, value)
        return value


class Pointer:
    """A tensor as a launch sees it: a type, and an address that is a multiple of 16 or is not."""

    def __init__(self, dtype: str, offset: int) -> None:
        self.dtype, self.offset = getattr(sys.modules["torch"], dtype), offset

    def data_ptr(self) -> int:
        return self.offset


def use() -> None:
    """Before anything imports torch."""
    sys.modules["torch"] = NoTorch("torch")
