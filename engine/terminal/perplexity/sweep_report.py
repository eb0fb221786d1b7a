"""A sweep as a table, and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table

from ...bench.quality.sweep import Point, Sweep
from ...units import size
from ..tables import new_table


def table(found: Sweep, text: str) -> Table:
    """One row a setting; the trained number of experts has a star. Rates are tokens per second."""
    first = found.points[0].perplexity
    title = (
        f"{text}, {first.tokens} tokens in windows of {first.window}, {first.stride} apart; used: experts of a layer, "
        "*: as trained; read: by a decoded token; pp, tg: tokens of a prompt, and of generated text"
    )
    shown = new_table(title, "used", "format", "experts", "cache", "read", "pp/s", "tg/s", "perplexity", "change, %")
    for point in found.points:
        shown.add_row(*_cells(point))
    return shown


def _cells(point: Point) -> list[str]:
    scored = point.perplexity
    return [
        f"{point.experts_per_token}{' *' if point.is_trained else ''}", format_of(point), size(point.expert_bytes),
        point.kv_format, size(point.bytes_per_token), f"{point.prefill_tok_s:.0f}", f"{point.decode_tok_s:.1f}",
        _with_error(scored.value, scored.error, ""), _with_error(point.change, point.change_error, "+", 100),
    ]  # fmt: skip


def _with_error(value: float, error: float | None, sign: str, times: float = 1) -> str:
    """A value and its standard error, with three or four digits."""
    places = 2 if sign == "" or abs(times * value) < 10 else 1
    return f"{times * value:{sign}.{places}f}" + ("" if error is None else f"±{times * error:.{places}f}")


def format_of(point: Point) -> str:
    """The format as it was asked for; of "native" which one that is."""
    return point.stored_as if point.expert_format == "native" else point.expert_format


def as_json(found: Sweep, model: str) -> dict[str, Any]:
    """Everything about a sweep; rates are tokens per second. base: the row that changes are against, from 0."""
    return {
        "model": model,
        "trained_experts_per_token": found.trained,
        "base": found.base,
        "rows": [asdict(point) for point in found.points],
        "passport": found.passport,
    }
