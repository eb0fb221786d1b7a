"""`headrace perplexity --sweep ... --plot`: quality over speed, and over the bytes that bound speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...bench.quality.sweep import Point, Sweep
from ...units import MB
from .. import plots
from . import sweep_report

Across = Callable[[Point], float]
# What perplexity is drawn over, with the name of that axis.
SPEED: tuple[str, Across] = ("decode, tokens/s (faster to the right)", lambda point: point.decode_tok_s)
BYTES: tuple[str, Across] = ("MB read for a decoded token", lambda point: point.bytes_per_token / MB)


def save(found: Sweep, path: Path, model: str, over: Sequence[tuple[str, Across]] = (SPEED, BYTES)) -> None:
    """Writes the figure, with a part for each of `over`; raises OptionError where it cannot be written."""
    draws = plots.pyplot()
    figure, axes = draws.subplots(1, len(over), figsize=(6.5 * len(over), 5.5), sharey=True, squeeze=False)
    for axis, (name, across) in zip(axes[0], over, strict=True):
        _curves(axis, found, across)
        axis.set(xlabel=name, yscale="log")
        axis.yaxis.set_major_formatter("{x:.4g}")
        axis.yaxis.set_minor_formatter("{x:.4g}")
        axis.grid(visible=True, which="both", alpha=0.25)
    axes[0][0].set_ylabel("perplexity (better below)")
    figure.suptitle(f"{model}: a star has the {found.trained} experts a token of training")
    plots.write(draws, figure, path)


def lines(found: Sweep) -> dict[str, list[Point]]:
    """The points that a line joins, by its name: those of a format, or all where each format has one point; of several
    formats of the cache each for itself."""
    by_format: dict[str, list[Point]] = {}
    has_caches = len({point.kv_format for point in found.points}) > 1
    for point in found.points:
        name = sweep_report.format_of(point) + (f", cache {point.kv_format}" if has_caches else "")
        by_format.setdefault(name, []).append(point)
    if all(len(points) == 1 for points in by_format.values()):
        return {f"{found.points[0].experts_per_token} experts a token": list(found.points)}
    return by_format


def _curves(axis: Any, found: Sweep, across: Across) -> None:
    by_number = len({point.experts_per_token for point in found.points}) > 1
    for name, points in lines(found).items():
        _curve(axis, name, points, across, by_number)
    axis.legend()


def _curve(axis: Any, name: str, points: Sequence[Point], across: Across, by_number: bool) -> None:
    """One line with bars of the standard error; by_number: points say their experts a token, else their format."""
    places, values = [across(p) for p in points], [p.perplexity.value for p in points]
    errors = [p.perplexity.error or 0.0 for p in points]
    drawn = axis.errorbar(places, values, yerr=errors, marker="o", markersize=4, elinewidth=0.7, capsize=2, label=name)
    for point, place, value in zip(points, places, values, strict=True):
        if point.is_trained:
            axis.plot([place], [value], marker="*", markersize=14, color=drawn.lines[0].get_color())
        label = str(point.experts_per_token) if by_number else sweep_report.format_of(point)
        axis.annotate(label, (place, value), textcoords="offset points", xytext=(5, 5), fontsize=8)
