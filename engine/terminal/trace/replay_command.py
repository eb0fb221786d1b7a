"""`headrace trace replay` in a terminal: what policies would have done with a trace; everything to standard output."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from ....errors import OptionError
from ...bandwidth_model import machine_file
from ...planning import replays
from ...policies.replay.replay import Replayed
from ...traces import reader
from ...traces.reader import Trace
from ...units import GB, size
from .. import plots
from ..tables import Screen, new_table
from . import replay_plot


def show(
    path: Path,
    policies: str | None,
    budgets: str | None,
    hardware: str | None,
    *,
    with_prompts: bool,
    as_json: bool,
    plot_to: Path | None = None,
) -> int:
    """Replays, prints and draws; the exit status is 1 where the file could not be read to its end. A picture has the
    optimum, and without budgets more of them."""
    if plot_to is not None:
        plots.check(plot_to)
    trace = reader.read(path)
    names = [word.strip() for word in (policies or replays.USUAL).split(",") if word.strip()]
    if not names:
        raise OptionError("--policy names no policy; lru,admit2 are two")
    machine = machine_file.find(hardware)
    found = replays.of_trace(trace, machine, with_prompts)
    sizes = replays.budgets_of(budgets, found.shape, replays.SHARES if plot_to is None else replays.CURVE)
    if plot_to is not None:
        replay_plot.check(plot_to, sizes)
        names += [] if replay_plot.CEILING in names else [replay_plot.CEILING]
    rows = list(found.rows(names, sizes))
    if as_json:
        print(json.dumps({**asdict(trace.header), "damage": trace.damage or None, "rows": list(map(as_row, rows))}))
    else:
        _print(path, trace, found, rows)
    if plot_to is not None:
        where = "" if machine is None or found.rates is None else f" on {machine.name}"
        title = f"{trace.header.model}: {found.choices.tokens} tokens{where}"
        replay_plot.save(rows, found.shape.nbytes, title, plot_to)
    return 1 if trace.damage else 0


def _print(path: Path, trace: Trace, found: replays.Replays, rows: list[Replayed]) -> None:
    out = Screen()
    header, tokens = trace.header, found.choices.tokens
    out.print(
        f"{header.model}: {tokens} tokens in {found.choices.passes} passes, {len(header.layers)} layers of "
        f"{header.experts} experts, {size(found.shape.nbytes)} in {header.formats['experts']}",
        soft_wrap=True,
    )  # fmt: skip
    if trace.damage:
        out.print(f"{path} was read up to here: {trace.damage}", soft_wrap=True)
    if found.rates is None:
        out.print(
            "no tokens/s: that takes the rates of a CPU, a GPU and its link (headrace measure, or --hardware "
            "rtx-4090,ddr5-5600-2ch)", soft_wrap=True,
        )  # fmt: skip
    out.print(table(rows))


def as_row(row: Replayed) -> dict[str, Any]:
    """One object; bytes and counts are of the whole trace."""
    return {
        "policy": row.policy, "budget": row.budget, "passes": row.passes, "tokens": row.tokens,
        "hit_rate": row.counts.hit_rate, **asdict(row.counts), "seconds": row.seconds, "tok_s": row.tokens_per_s,
    }  # fmt: skip


def table(rows: list[Replayed]) -> Table:
    """A row for each budget and policy; hits and what the CPU computed are shares of choices."""
    best = {row.budget: row.counts.hit_rate for row in rows if row.policy == "belady"}
    timed = any(row.seconds for row in rows)
    columns = ["budget", "policy", "hits", "CPU", "link", "DRAM"]
    shown = new_table(
        "replay; link and DRAM in GB a token" + ("; best: belady's hits" if best else ""),
        *columns, *(["of best"] if best else []), *(["tok/s"] if timed else []),
    )  # fmt: skip
    for row in rows:
        counts, each = row.counts, max(1, row.counts.choices)
        cells = [
            f"{row.budget / GB:.3g} GB", row.policy, f"{counts.hit_rate:.1%}", f"{counts.on_cpu / each:.1%}",
            f"{counts.link_bytes / GB / row.tokens:.3f}", f"{counts.cpu_bytes / GB / row.tokens:.3f}",
        ]  # fmt: skip
        if best:
            cells.append(f"{counts.hit_rate / best[row.budget]:.0%}" if best.get(row.budget) else "-")
        if timed:
            cells.append("-" if row.tokens_per_s is None else f"{row.tokens_per_s:.1f}")
        shown.add_row(*cells)
    return shown
