"""A Triton kernel as the ops launch it: `kernel[grid](*arguments, **constants)`, with what it was compiled to at hand.

Triton compiles a variant for every set of constants, types, alignments and of integers that are 1 or multiples of 16,
and works out at each launch which one is meant. That takes longer than the launch itself, so `Kernel` finds the variant
by a key of its own, which has all of this in it, and asks Triton only for one that it has not seen.

Integers that change while a model runs (tokens, pages of a table) are `varying`: no variant is made for their values,
or the first prompt of each kind would wait for a compiler.

Dependent launches: on GPUs of compute capability 9.0 on, a kernel may be brought to the multiprocessors while the one
before it in the stream still runs, and then waits for its end. What a graph's node costs at least is partly hidden so.
The kernel is the same one with two instructions in front (`dependent`): wait for all that came before, and let what
follows come. They are in front of everything, so no kernel reads or writes before its turn, and since each of them
waits, the one before the one before has ended as well. Off but for launches within `dependent_launches`.
"""

from __future__ import annotations

import ast
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, NamedTuple

import triton
import triton.language as tl
from triton.backends.nvidia.compiler import CUDAOptions
from triton.runtime import driver

INTERPRETED = bool(triton.knobs.runtime.interpret)

Key = tuple[Any, ...]
Take = Callable[["Kernel", tuple[Any, ...], dict[str, Any]], None]


class _Watched(threading.local):
    take: Take | None = None


_watched = _Watched()


class _Dependent(threading.local):
    wanted = False
    is_next_apart = False


_dependent = _Dependent()


@contextmanager
def dependent_launches(wanted: bool) -> Iterator[None]:
    """Within it, launches of this thread are dependent ones, but for the first one and those behind `apart`."""
    before, _dependent.wanted, _dependent.is_next_apart = _dependent.wanted, wanted, True
    try:
        yield
    finally:
        _dependent.wanted = before


def apart() -> None:
    """The next launch of this thread waits in the usual way: what is before it in the stream is no kernel, or waits for
    the CPU."""
    _dependent.is_next_apart = True


def are_dependent_launches_offered(capability: tuple[int, int]) -> bool:
    """By a GPU of this compute capability and the Triton that is installed."""
    option = "launch_pdl" in getattr(CUDAOptions, "__dataclass_fields__", {})
    return capability >= (9, 0) and option and hasattr(tl.extra.cuda, "gdc_launch_dependents")


WAIT_FIRST = "tl.extra.cuda.gdc_wait()\n", "tl.extra.cuda.gdc_launch_dependents()\n"


def waiting_first(source: str) -> str:
    """The source of a kernel with these statements in front of its own."""
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef), source
    first = function.body[0]
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    at = function.body[1 if is_text else 0]
    lines = source.splitlines(keepends=True)
    added = [" " * at.col_offset + line for line in WAIT_FIRST]
    return "".join([*lines[: at.lineno - 1], *added, *lines[at.lineno - 1 :]])


@contextmanager
def watched(take: Take) -> Iterator[None]:
    """Within it, launches of this thread are not made, but told to `take` with their arguments and constants."""
    before, _watched.take = _watched.take, take
    try:
        yield
    finally:
        _watched.take = before


def settle_key(function: Any) -> None:
    """Has Triton work out what it knows a function by, those that it calls first.

    Triton puts the constants of a called function into the caller's key only if the called one was known before
    (`DependenciesFinder._update_hash` of 3.6 and 3.7). Else the key, and with it what the cache on disk is asked for,
    would depend on which kernel came first: a start in another order would compile what is there.
    """
    if function.hash is not None:
        return
    names, known = inspect.unwrap(function.fn).__code__.co_names, function.__globals__
    places = [known, *(vars(known[name]) for name in names if inspect.ismodule(known.get(name)))]
    for called in (place.get(name) for place in places for name in names):
        if isinstance(called, triton.runtime.jit.JITCallable) and called is not function:
            settle_key(called)
    assert function.cache_key


class Variant(NamedTuple):
    """A compiled kernel as it is launched: run(grid x, y, z, stream, *handles, *arguments, *constants)."""

    run: Callable[..., None]
    handles: tuple[Any, ...]
    constants: tuple[Any, ...]


class Kernel:
    """A kernel, of a function in Triton's language; names of arguments that point to memory end in _ptr, and constants
    come last."""

    def __init__(self, function: Callable[..., None], varying: tuple[str, ...]) -> None:
        self.function, self.varying = triton.jit(do_not_specialize=varying)(function), varying
        self.__name__, self.__doc__ = function.__name__, function.__doc__
        parameters = inspect.signature(function).parameters
        self.constants = [name for name, p in parameters.items() if "constexpr" in str(p.annotation)]
        given = list(parameters)[: len(parameters) - len(self.constants)]
        assert set(varying) <= set(given), f"{self.__name__}: {varying} of {given}"
        self.pointers = [n for n, name in enumerate(given) if name.endswith("_ptr")]
        self.values = [n for n, name in enumerate(given) if not name.endswith("_ptr") and name not in varying]
        self.known: dict[Key, Variant] = {}

    @cached_property
    def dependent(self) -> Any:
        """The same function for dependent launches."""
        function: Any = triton.jit(do_not_specialize=self.varying)(self.function.fn)
        function._unsafe_update_src(waiting_first(function.src))
        return function

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return partial(self.launch, grid)

    def launch(self, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        """Launches `grid` programs in the current stream of the current device."""
        if _watched.take is not None:
            _watched.take(self, args, constants)
            return
        if INTERPRETED:
            self.function[grid](*args, **constants)
            return
        active, function = driver.active, self.function
        if _dependent.wanted:
            if not _dependent.is_next_apart:
                function, constants = self.dependent, constants | {"launch_pdl": True}
            _dependent.is_next_apart = False
        device = active.get_current_device()
        key = self.key(device, args, constants)
        known = self.known.get(key)
        if known is None:
            settle_key(function)
            self._keep(key, function[grid](*args, **constants), constants)  # launches too
            return
        run, handles, values = known
        x, y, z = (*grid, 1, 1)[:3]
        run(x, y, z, active.get_current_stream(device), *handles, *args, *values)

    def key(self, device: int, args: tuple[Any, ...], constants: dict[str, Any]) -> Key:
        """What a variant follows from: all but where tensors lie, and how large what varies is."""
        tensors = [args[n] for n in self.pointers]
        return (
            device, *constants, *constants.values(), *[args[n] for n in self.values],
            *[t.dtype for t in tensors], *[t.data_ptr() & 15 for t in tensors],
        )  # fmt: skip

    def compile(self, args: tuple[Any, ...], constants: dict[str, Any]) -> bool:
        """Compiles and loads the variant that a launch with these arguments would take on the current device; tensors
        may be on the `meta` device. Whether it was new."""
        key = self.key(driver.active.get_current_device(), args, constants)
        if key in self.known:
            return False
        settle_key(self.function)
        self._keep(key, self.function.run(*args, grid=(1,), warmup=True, **constants), constants)
        return True

    def _keep(self, key: Key, compiled: Any, constants: dict[str, Any]) -> None:
        """Keeps a variant, loaded and with its launcher. None: a hook of Triton's kept it from being compiled."""
        if compiled is not None:
            run = compiled.run  # loads it: its function is there after that
            handles = (compiled.function, compiled.packed_metadata, None, None, None)  # no hooks around a launch
            self.known[key] = Variant(run, handles, tuple(constants[name] for name in self.constants))


def kernel(*varying: str) -> Callable[[Callable[..., None]], Kernel]:
    """Makes a function in Triton's language a kernel."""
    return lambda function: Kernel(function, varying)
