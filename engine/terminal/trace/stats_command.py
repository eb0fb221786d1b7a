"""`headrace trace stats` in a terminal: what a trace says of a model's routing; everything to standard output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from ...traces import reader
from ...traces.reader import Trace
from ...traces.stats import Stats, stats
from .. import plots
from ..tables import Screen, new_table
from . import stats_plot


def show(path: Path, *, as_json: bool = False, plot_to: Path | None = None) -> int:
    """Prints the numbers, and draws them; the exit status is 1 where the file could not be read to its end."""
    if plot_to is not None:
        plots.check(plot_to)
    trace = reader.read(path)
    found = stats(trace)
    if plot_to is not None:
        stats_plot.save(trace, found, plot_to)
    if as_json:
        print(json.dumps(to_json(trace, found)))
    else:
        out = Screen()
        for piece in pieces(path, trace, found):
            out.print(piece, soft_wrap=isinstance(piece, str))
    return 1 if trace.damage else 0


def to_json(trace: Trace, found: Stats) -> dict[str, Any]:
    """One object: of the header, of the file, and all numbers."""
    return {**asdict(trace.header), "lost": trace.lost, "damage": trace.damage or None, "stats": asdict(found)}


def pieces(path: Path, trace: Trace, found: Stats) -> Iterator[str | Table]:
    """What is printed, from top to bottom."""
    header = trace.header
    kind = f"{len(header.layers)} layers of {header.experts} experts, {header.top_k} a token"
    yield f"{header.model} ({header.family}, experts in {header.formats['experts']}): {kind}"
    prompt = found.tokens - found.generated
    yield f"{prompt} tokens of prompts, {found.generated} generated, of {found.sequences} sequences"
    if trace.lost:
        yield f"{trace.lost} tokens more were left out: the disk did not keep up"
    if trace.damage:
        yield f"{path} was read up to here: {trace.damage}"
    if found.tokens:
        yield _by_layer(found)
        yield _by_size(header.experts, found)
        if found.next_layer is not None:
            yield (
                f"of a layer's experts {found.next_layer.by_experts:.1%} are guessed from those of the layer before, "
                f"{found.next_layer.by_heat:.1%} by taking its hottest"
            )


def _by_layer(found: Stats) -> Table:
    table = new_table(
        "by layer", "layer", "hot tenth", "hottest", "of tokens", "unused", "spread", "as before", "again"
    )
    for one in found.layers:
        table.add_row(
            str(one.layer), f"{one.hot_share:.1%}", str(one.hottest), f"{one.hottest_share:.1%}", str(one.unused),
            f"{one.effective:.1f}", "-" if one.overlap is None else f"{one.overlap:.1%}",
            "-" if one.reuse is None else f"{one.reuse:.0f}",
        )  # fmt: skip
    return table


def _by_size(experts: int, found: Stats) -> Table:
    table = new_table("different experts of a layer", "tokens", "of anywhere", "share", "in a row", "share")
    for size, batch in found.batches.items():
        window = found.windows[size]
        table.add_row(str(size), f"{batch:.1f}", f"{batch / experts:.1%}", f"{window:.1f}", f"{window / experts:.1%}")
    return table
