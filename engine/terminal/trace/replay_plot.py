"""`headrace trace replay --plot`: hits over the size of the fast memory, a curve for each policy under the optimum, and
tokens/s beside it on a machine of known rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....errors import OptionError
from ...planning.replays import CEILING
from ...policies.replay.replay import Replayed
from ...units import GB, MB
from .. import plots


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Of a policy, by rising size of the fast memory: bytes, the share of choices that were hits, and tokens per
    second; None where rates are not known."""

    policy: str
    budgets: tuple[int, ...]
    hits: tuple[float, ...]
    tok_s: tuple[float, ...] | None


def check(path: Path, budgets: Sequence[int]) -> None:
    """Raises OptionError, before anything is replayed, if a picture cannot be written there or has one size alone."""
    plots.check(path)
    if len(set(budgets)) < 2:
        raise OptionError("--plot draws curves over the size of the memory: give several to --vram, or leave it out")


def curves(rows: Sequence[Replayed]) -> list[Curve]:
    """One for each policy, in the order in which they come."""
    found = []
    for policy in dict.fromkeys(row.policy for row in rows):
        own = sorted((row for row in rows if row.policy == policy), key=lambda row: row.budget)
        speeds = tuple(row.tokens_per_s for row in own)
        found.append(
            Curve(
                policy=policy,
                budgets=tuple(row.budget for row in own),
                hits=tuple(row.counts.hit_rate for row in own),
                tok_s=None if None in speeds else tuple(speed for speed in speeds if speed is not None),
            )
        )
    return found


def save(rows: Sequence[Replayed], total: int, title: str, path: Path) -> None:
    """Writes the picture. total: bytes of all experts. Raises OptionError where it cannot be written."""
    drawn = curves(rows)
    timed = any(curve.tok_s for curve in drawn)
    draws = plots.pyplot()
    figure, axes = draws.subplots(1, 2 if timed else 1, figsize=(13 if timed else 7.5, 5), squeeze=False)
    _hits(axes[0][0], drawn)
    if timed:
        _speeds(axes[0][1], drawn)
    for axis in axes[0]:
        _sizes(axis, total)
        axis.legend(fontsize=8)
    figure.suptitle(title)
    plots.write(draws, figure, path)


def _sizes(axis: Any, total: int) -> None:
    """The size below in bytes, above as a share of all experts."""
    unit, name = (GB, "GB") if total >= GB else (MB, "MB")
    axis.set(xlabel=f"fast memory for experts, {name}", xlim=(0, None), ylim=(0, None))
    axis.xaxis.set_major_formatter(lambda size, _: f"{size / unit:g}")
    axis.grid(alpha=0.2)
    share = axis.secondary_xaxis("top", functions=(lambda size: 100 * size / total, lambda part: part * total / 100))
    share.set_xlabel("% of all experts", fontsize=8)
    share.tick_params(labelsize=8)


def _hits(axis: Any, drawn: Sequence[Curve]) -> None:
    """Without those that never hit, under the optimum."""
    for number, curve in enumerate(drawn):
        if any(curve.hits) or curve.policy == CEILING:
            more = ", the optimum" if curve.policy == CEILING else ""
            _line(axis, curve, number, [100 * hit for hit in curve.hits], more)
    axis.set(title="hits", ylabel="% of choices")


def _speeds(axis: Any, drawn: Sequence[Curve]) -> None:
    for number, curve in enumerate(drawn):
        if curve.tok_s:
            _line(axis, curve, number, curve.tok_s)
    axis.set(title="experts alone, predicted", ylabel="tokens/s")


def _line(axis: Any, curve: Curve, number: int, values: Sequence[float], more: str = "") -> None:
    """The optimum of hits, which need not be that of time, is black."""
    look = {"color": "black", "linestyle": "--"} if curve.policy == CEILING else {"color": f"C{number}", "marker": "."}
    axis.plot(curve.budgets, values, label=curve.policy + more, **look)
