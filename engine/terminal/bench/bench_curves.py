"""What `headrace bench --plot` draws, as numbers: speed over batch size and over depth, a curve for each machine,
model, placement and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....errors import OptionError

BATCH, DEPTH = "batch", "depth"
AXES = (BATCH, DEPTH)
# What tells results apart, until each has a name of its own.
TRAITS = ("machine", "model", "formats", "layers", "date", "file")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A test: `at` sequences, or tokens of depth. Rates are tokens per second of all sequences together: the median of
    the rounds, the slowest, the fastest, and as predicted; seconds: of a step, measured and predicted."""

    at: int
    tok_s: float
    low: float
    high: float
    predicted_tok_s: float | None
    step_s: float
    predicted_s: float | None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points of rising `at`. crossover: by group of weights the sequences from which arithmetic is predicted to bound
    them. label: what it differs from the others in; "": it is the only one."""

    label: str
    points: tuple[Point, ...]
    crossover: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The curves over one axis, and what is the same in all of them."""

    axis: str
    curves: tuple[Curve, ...]
    same: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """What `headrace bench --json` wrote, and how people know it. name: of a machine, or more where that is that of
    another result too; "": there is no other."""

    found: dict[str, Any]
    name: str = ""


def named(results: Sequence[dict[str, Any]], files: Sequence[str]) -> list[Result]:
    """Results by their machines; where these are the same by model, formats, layers, date or file. files: the name of
    each."""
    traits = [_traits(one, file) for one, file in zip(results, files, strict=True)]
    chosen: list[str] = []
    for trait in TRAITS:
        names = [", ".join(each[one] for one in chosen) for each in traits]
        if len(set(names)) == len(names):
            break
        if len({each[trait] for each in traits}) > 1:
            chosen.append(trait)
    names = [", ".join(each[one] for one in chosen) for each in traits]
    return [Result(found=one, name=name) for one, name in zip(results, names, strict=True)]


def title(results: Sequence[dict[str, Any]]) -> str:
    """What is the same in all of them, of model, layers, formats and machine."""
    traits = [_traits(one, "") for one in results]
    same = [one for one in ("model", "layers", "formats", "machine") if len({each[one] for each in traits}) == 1]
    return ", ".join(traits[0][one] for one in same)


def _traits(found: dict[str, Any], file: str) -> dict[str, str]:
    passport, formats, layers = found["passport"], found["formats"], found["layers"]
    cpu = f"{passport.get('cpu')}, {passport.get('threads')} threads, {passport.get('isa')}"
    whole = found.get("whole_layers", layers)
    return {
        "machine": " + ".join([*found.get("gpus", []), cpu]),
        "model": Path(found["model"]).name,
        "formats": f"experts {formats.get('experts')}, dense {formats.get('dense')}",
        "layers": f"{layers} layers" if whole == layers else f"{layers} of {whole} layers",
        "date": str(passport.get("date")),
        "file": file,
    }


def panels(results: Sequence[Result]) -> list[Panel]:
    """Over batch size, over depth, or both: those that there are curves for."""
    return [found for found in (panel(results, axis) for axis in AXES) if found.curves]


def panel(results: Sequence[Result], axis: str) -> Panel:
    """A curve for each result, placement, test and number on the other axis that was measured in several points of this
    one."""
    groups: dict[tuple[int, str, str, int], list[dict[str, Any]]] = {}
    other = DEPTH if axis == BATCH else BATCH
    for number, one in enumerate(results):
        for row in one.found["rows"]:
            if row["test"].startswith("tg"):
                groups.setdefault((number, row["placement"], row["test"], row[other]), []).append(row)
    chosen = {key: rows for key, rows in groups.items() if len({row[axis] for row in rows}) > 1}
    words = [(results[n].name, placement, test, f"{other} {at}") for n, placement, test, at in chosen]
    differs = [len(set(column)) > 1 for column in zip(*words, strict=True)]
    labels = [", ".join(word for word, shown in zip(one, differs, strict=True) if shown) for one in words]
    return Panel(
        axis=axis,
        curves=tuple(_curve(label, rows, axis) for label, rows in zip(labels, chosen.values(), strict=True)),
        same=", ".join(word for word, shown in zip(words[0], differs, strict=True) if word and not shown)
        if words
        else "",
    )


def _curve(label: str, rows: list[dict[str, Any]], axis: str) -> Curve:
    last = {row[axis]: row for row in rows}  # of a test that was run twice the last one
    points = tuple(_point(last[at], axis) for at in sorted(last))
    return Curve(label=label, points=points, crossover=rows[-1].get("crossover") or {})


def _point(row: dict[str, Any], axis: str) -> Point:
    measured, predicted = row["tok_s"], row.get("predicted_tok_s")
    rounds = row.get("rounds") or [measured]
    return Point(
        at=row[axis],
        tok_s=measured,
        low=min(rounds),
        high=max(rounds),
        predicted_tok_s=predicted,
        step_s=row["batch"] / measured,
        predicted_s=row["batch"] / predicted if predicted else None,
    )


def check(results: Sequence[dict[str, Any]], files: Sequence[str]) -> None:
    """Raises OptionError for a file without a curve."""
    for found, file in zip(results, files, strict=True):
        if not panels([Result(found=found)]):
            raise OptionError(
                f"{file} has no curve to draw, it has one batch size and one depth: measure several, -b 1,4,16 or "
                "--depth 0,1024,4096"
            )
