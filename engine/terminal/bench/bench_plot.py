"""`headrace bench --plot`: time of a step and tokens/s over the batch size, tokens/s over the depth, measured beside
predicted."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ....errors import OptionError
from ...bench.grid import Grid
from .. import plots
from . import bench_curves
from .bench_curves import BATCH, Curve, Panel, Point

Value = Callable[[Point], float | None]
LINES = {"dense": ":", "experts": "-."}  # of crossovers, by group of weights
FEW, SHORT = 2, 20  # curves, and letters of their names, that leave room for a legend beside them
LINE = 0.19  # inches of a line of a legend
LETTERS = 64  # of a title over one picture
FAR = 2.0  # times the largest batch: a crossover beyond is said, not drawn


def check(path: Path, tests: Grid | None) -> None:
    """Raises OptionError, before anything runs, if a picture cannot be written there, or tests have no curve."""
    plots.check(path)
    if tests is not None and not (any(tests.new) and max(len(set(tests.batch)), len(set(tests.depth))) > 1):
        raise OptionError(
            "--plot draws decode over batch size and depth: measure several, -b 1,4,16 or --depth 0,1024,4096"
        )


def save(results: Sequence[dict[str, Any]], files: Sequence[str], path: Path) -> None:
    """Writes one picture of all results; files: the name of each. Raises OptionError where one has no curve, or the
    picture cannot be written."""
    plots.check(path)
    bench_curves.check(results, files)
    draws, panels = plots.pyplot(), bench_curves.panels(bench_curves.named(results, files))
    count = sum(2 if one.axis == BATCH else 1 for one in panels)
    lines = max((4 + len(one.curves) for one in panels if _is_long(one)), default=0)
    figure, grid = draws.subplots(1, count, figsize=(5.6 * count, 4.8 + LINE * lines), squeeze=False)
    axes = iter(grid[0])
    for panel in panels:
        if panel.axis == BATCH:
            _step(next(axes), panel)
            _over_batch(next(axes), panel)
        else:
            _over_depth(next(axes), panel)
    figure.suptitle(textwrap.fill(bench_curves.title(results), LETTERS * count), fontsize=11)
    plots.write(draws, figure, path)


def _step(axis: Any, panel: Panel) -> None:
    _draw(axis, panel, lambda p: 1e3 * p.step_s, lambda p: 1e3 * p.predicted_s if p.predicted_s else None, _step_bounds)
    _batches(axis, panel)
    axis.set(title="time of a step", ylabel="ms", ylim=(0, None))
    if not _is_long(panel):
        _legend(axis, panel)  # else that of the next picture is enough


def _over_batch(axis: Any, panel: Panel) -> None:
    _draw(axis, panel, lambda p: p.tok_s, lambda p: p.predicted_tok_s, lambda p: (p.low, p.high))
    _batches(axis, panel)
    axis.set(title="decode over batch size", ylabel="tokens/s, all sequences", ylim=(0, None))
    _crossovers(axis, panel)


def _over_depth(axis: Any, panel: Panel) -> None:
    _draw(axis, panel, lambda p: p.tok_s, lambda p: p.predicted_tok_s, lambda p: (p.low, p.high))
    axis.set(title="decode over depth", ylabel="tokens/s, all sequences", ylim=(0, None))
    axis.set_xlabel(f"tokens before ({panel.same})" if panel.same else "tokens before")
    _legend(axis, panel)


def _step_bounds(point: Point) -> tuple[float, float]:
    """Milliseconds of the fastest and the slowest round."""
    return 1e3 * point.at / point.high, 1e3 * point.at / point.low


def _draw(axis: Any, panel: Panel, measured: Value, predicted: Value, bounds: Callable[[Point], Any]) -> None:
    """Measured values as a line with a band of all rounds, predicted ones dashed in the same colour."""
    for number, curve in enumerate(panel.curves):
        colour, xs = f"C{number}", [p.at for p in curve.points]
        axis.plot(xs, [measured(p) for p in curve.points], "o-", color=colour, label=curve.label or "measured")
        low, high = zip(*(bounds(p) for p in curve.points), strict=True)
        axis.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
        known = [(p.at, value) for p in curve.points if (value := predicted(p)) is not None]
        if known:
            axis.plot(*zip(*known, strict=True), "--", color=colour, label="" if curve.label else "predicted")
    if any(curve.label for curve in panel.curves):
        axis.plot([], [], "o-", color="black", label="measured")
        axis.plot([], [], "--", color="black", label="predicted")
    axis.grid(alpha=0.2)


def _batches(axis: Any, panel: Panel) -> None:
    """Batch sizes as they were measured, doubling from one to the next."""
    sizes = sorted({p.at for curve in panel.curves for p in curve.points})
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.set_xticks([], minor=True)
    axis.set_xlabel(f"sequences ({panel.same})" if panel.same else "sequences")


def _crossovers(axis: Any, panel: Panel) -> None:
    """From where on arithmetic bounds weights: a line in the colour of its curve, and in words for one machine."""
    most = max(p.at for curve in panel.curves for p in curve.points)
    found = marks(panel.curves)
    for group, at, colour in found:
        if at <= FAR * most:
            axis.axvline(at, linestyle=LINES.get(group, ":"), color=colour, linewidth=1)
    for group in dict.fromkeys(group for group, _, _ in found):
        each = sorted({math.ceil(at) for name, at, _ in found if name == group})
        label = f"{group}: bound by arithmetic from {', '.join(map(str, each))}"
        axis.plot([], [], linestyle=LINES.get(group, ":"), color="black", linewidth=1, label=label)
    _legend(axis, panel)


def _is_long(panel: Panel) -> bool:
    """Whether a legend would cover the curves."""
    return len(panel.curves) > FEW or any(len(curve.label) > SHORT for curve in panel.curves)


def _legend(axis: Any, panel: Panel) -> None:
    """Beside the curves where there is room, else below the axis."""
    below = {"loc": "upper left", "bbox_to_anchor": (0, 0), "borderaxespad": 5.5}  # 5.5: lines, the axis' own words
    axis.legend(fontsize=8, **(below if _is_long(panel) else {}))


def marks(curves: Sequence[Curve]) -> list[tuple[str, float, str]]:
    """Crossovers of all curves: the group of weights, sequences, colour; black where several curves have the same."""
    found: dict[tuple[str, float], list[str]] = {}
    for number, curve in enumerate(curves):
        for group, at in curve.crossover.items():
            found.setdefault((group, at), []).append(f"C{number}")
    return [(group, at, each[0] if len(each) == 1 else "black") for (group, at), each in found.items()]
