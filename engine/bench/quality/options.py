"""What a user can choose of `headrace perplexity`, and how a sweep is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....errors import OptionError, brief
from ...config import EngineConfig
from ...option import COMMON, option

# What can be swept, and the field of `EngineConfig` that it sets.
AXES = {"experts-per-token": "experts_per_token", "expert-format": "expert_format", "kv-format": "kv_format"}
EXAMPLE = "experts-per-token=1,2,4"
CACHES = ("bf16", "q8_0")
FORMATS = ("native", "q8_0", "q6_k", "q4_k", "q4_0", "q3_k", "q2_k")  # where none are given

Axis = tuple[str, tuple[int | str, ...]]  # a field, and its values; none: the usual ones


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How a text is scored, and what is swept meanwhile. Raises OptionError for what cannot be."""

    window: int = option(512, COMMON, "TOKENS", "that are read together")
    stride: int | None = option(None, COMMON, "TOKENS", "from window to window; default a window, so that none overlap")
    sweep: tuple[str, ...] = option(
        (), COMMON, "NAME[=VALUE,...]", f"measure each value, or each pair of two names: {', '.join(AXES)}"
    )
    rounds: int = option(1, COMMON, "N", "of a sweep: how often speeds are taken, all in turn; the median counts")
    plot: Path | None = option(None, COMMON, "FILE", "draw the sweep, quality over speed, to this .png or .svg")

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise OptionError(f"--rounds is {self.rounds}: give at least 1")
        if self.rounds > 1 and not self.sweep:
            raise OptionError(f"--rounds is {self.rounds}, and only a sweep has rounds: add --sweep")
        if self.plot is not None and not self.sweep:
            raise OptionError("--plot draws a sweep: add --sweep, as in --sweep experts-per-token,expert-format")
        _ = self.axes

    @property
    def axes(self) -> tuple[Axis, ...]:
        """What is swept."""
        found = [axis for text in self.sweep for axis in parse(text)]
        names = [name for name, _ in found]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise OptionError(f"--sweep has {_said(twice)} twice: give its values in one list")
        return tuple(found)

    def check_against(self, config: dict[str, object]) -> None:
        """Raises OptionError where a swept value is also given by its own option."""
        for name, _ in self.axes:
            if config.get(name) != getattr(EngineConfig, name):
                raise OptionError(f"--sweep and --{_said(name)} both say {_said(name)}: give one of them")


def parse(text: str) -> list[Axis]:
    """The axes of a text: NAME=VALUE,VALUE,... or NAME for the usual values, several after commas."""
    found: list[tuple[str, list[int | str]]] = []
    for word in text.split(","):
        name, equals, value = word.partition("=")
        if name in AXES:
            found.append((AXES[name], []))
            if not equals:
                continue
        elif not found or equals:
            raise OptionError(f"--sweep has no {brief(name)}; there are {', '.join(AXES)}, as in --sweep {EXAMPLE}")
        else:
            value = word
        found[-1][1].append(_value(found[-1][0], value))
    return [(name, tuple(dict.fromkeys(values))) for name, values in found]


def _value(name: str, word: str) -> int | str:
    if name != "experts_per_token":
        wanted: dict[str, Any] = {name: word}
        EngineConfig(**wanted)  # refuses one that there is not
        return word
    if not (word.isascii() and word.isdigit()):
        raise OptionError(f"--sweep {_said(name)} has {brief(word)}; give whole numbers, as in {EXAMPLE}")
    return int(word)


def _said(name: str) -> str:
    """A field as an option."""
    return next(said for said, field in AXES.items() if field == name)
