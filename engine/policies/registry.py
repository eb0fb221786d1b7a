"""Policies by name: those of the box, and what other packages offer as entry points of the group "headrace.policies".

An entry point is a function that takes what is known (`Known`) and gives a policy, as the functions here do. A name of
the box stays the box's: of an entry point that has it, a line says that it is not used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from ...errors import OptionError
from .ahead import NextLayer, Split
from .fixed import AllInRam, FirstLayers, Frequency, Uniform
from .frequency import AgedLfu, Classes
from .optimum import Belady
from .protocol import Policy
from .recency import AdmitOnSecondMiss, Lru, SegmentedLru
from .second_gpu import SecondGpu

GROUP = "headrace.policies"
log = logging.getLogger("headrace")


@dataclass(frozen=True, kw_only=True)
class Known:
    """What a policy may be made of; None where it is not known. counts: by layer and expert how often it was chosen
    in a trace; future: of every pass, by layer, the experts that it will choose; fetched: by missing experts of a layer
    how many to fetch, so that link and CPU are done together; store_bytes: of a second GPU's memory, for experts."""

    counts: Sequence[Sequence[float]] | None = None
    future: Iterable[Sequence[Sequence[int]]] | None = None
    fetched: Sequence[int] | None = None
    store_bytes: int | None = None


T = TypeVar("T")
Make = Callable[[Known], Policy]


def _frequency(known: Known) -> Policy:
    return Frequency(_needed("frequency", known.counts, "how often experts are chosen: give a trace"))


def _belady(known: Known) -> Policy:
    return Belady(_needed("belady", known.future, "the future: it is for replays alone"))


def _split(known: Known) -> Policy:
    return Split(_needed("split", known.fetched, "rates of link and CPU: run headrace measure, or name the hardware"))


def _second_gpu(known: Known) -> Policy:
    bytes_ = _needed("second-gpu", known.store_bytes, "the memory of a second GPU: give --second-vram, as in 24GB")
    return SecondGpu(bytes_, known.counts)


def _needed(name: str, value: T | None, what: str) -> T:
    if value is None:
        raise OptionError(f"policy '{name}' needs {what}")
    return value


BOX: dict[str, Make] = {
    "all-ram": lambda _: AllInRam(), "first-layers": lambda _: FirstLayers(), "uniform": lambda _: Uniform(),
    "frequency": _frequency, "lru": lambda _: Lru(), "lfu": lambda _: AgedLfu(), "slru": lambda _: SegmentedLru(),
    "admit2": lambda _: AdmitOnSecondMiss(), "classes": lambda _: Classes(), "next-layer": lambda _: NextLayer(),
    "split": _split, "second-gpu": _second_gpu, "belady": _belady,
}  # fmt: skip


def names() -> list[str]:
    """Of all that there are."""
    return [*BOX, *(point.name for point in _points(entry_points) if point.name not in BOX)]


@lru_cache(maxsize=1)
def _points(look: Callable[..., Iterable[EntryPoint]]) -> tuple[EntryPoint, ...]:
    """What other packages offer. Read once: a replay makes hundreds of policies."""
    return tuple(look(group=GROUP))


@cache
def _say_unused(name: str, value: str) -> None:
    """Once for each."""
    log.warning("policy '%s' of %s is not used: headrace has one of that name; rename its entry point", name, value)


def make(name: str, known: Known) -> Policy:
    """Raises OptionError for a name that there is not, for one that needs what is not known, and where another
    package's policy cannot be loaded."""
    same = [point for point in _points(entry_points) if point.name == name]
    if name in BOX:
        for point in same:
            _say_unused(name, point.value)
        return BOX[name](known)
    for point in same:
        try:
            policy: Policy = point.load()(known)
        except Exception as error:  # whatever that package raises
            problem = f"{type(error).__name__}: {error}"
            raise OptionError(
                f"policy '{name}' of {point.value} cannot be made ({problem}): an entry point names a function of "
                "what is known, def make(known)"
            ) from error
        if lacks := [part for part in ("name", "start", "layer") if not hasattr(policy, part)]:
            raise OptionError(
                f"policy '{name}' of {point.value} is of type {type(policy).__name__}, without "
                f"{' and '.join(lacks)} (docs/policies.md): add what is missing"
            )
        return policy
    raise OptionError(f"there is no policy '{name}': take one of {', '.join(names())}")
